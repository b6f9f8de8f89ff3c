"""What the filters find of faults that were planted among real records."""

from pathlib import Path

import pytest

from benchmarks.planted import CASES
from tests.datamodules.synthetic.records import needs_extra

DATA = Path(__file__).parents[5] / "shared" / "data"
RECALL = {"format": 0.8, "near_duplicates": 0.85, "language": 0.95}
"""Of the others 0.98. Format cannot see most answers that are cut, near duplicates with a word in ten replaced lie on
the threshold, and some answers of ten words could be in two languages."""


@needs_extra
@pytest.mark.skipif(not DATA.exists(), reason="needs the shared data")
@pytest.mark.parametrize("case", CASES)
def test_precision_and_recall(tmp_path, case):
    found = CASES[case](DATA, 60).measure(tmp_path)
    assert found["recall"] >= RECALL.get(case, 0.98)
    assert found["precision"] >= 0.95
    assert found["clean_kept"] >= 0.995
