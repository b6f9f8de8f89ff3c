"""metrics.csv as columns, whole or torn."""

import numpy as np
import pytest

from llm_lightning.report.metrics import read_metrics
from tests.llm_lightning.report.folders import METRICS


def read(tmp_path, text):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    return read_metrics(path)


def test_curves_lie_over_tokens(tmp_path):
    metrics = read(tmp_path, METRICS)
    x, y = metrics.curve("train/loss")
    assert x.tolist() == [2048, 4096, 6144] and y.tolist() == [3.5, 2.5, 2.25]
    assert metrics.curve("data/num_tokens")[0].tolist() == [204.8]  # step 1 has no tokens: a tenth of step 10's
    assert metrics.curve("val/loss", over_tokens=False)[0].tolist() == [20, 30]
    assert metrics.curve("unknown")[1].size == 0
    assert metrics.last("train/loss") == 2.25 and metrics.last("unknown") is None
    assert metrics.best("train/lr") == (0.0001, 30) and metrics.best("train/lr", highest=True) == (0.001, 10)


def test_without_tokens_steps_are_the_axis(tmp_path):
    metrics = read(tmp_path, "step,train/loss\n1,2\n5,1\n")
    assert not metrics.has_tokens and metrics.curve("train/loss")[0].tolist() == [1, 5]


def test_what_is_torn_or_no_number_is_left_out(tmp_path):
    metrics = read(tmp_path, "step,a\n3,1\n1,nan\n2,inf\n4,<b>\nx,5\n6\n7,8,9\n5,2\n8,0.12")
    assert metrics.steps.tolist() == [1, 2, 3, 4, 5]
    assert metrics.curve("a")[1].tolist() == [1, 2]


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "no newline", "step" + ",x" * 2_000 + "\n", 'step,"a\n' + "x" * 200_000 + "\n"]
)
def test_what_is_no_table_of_metrics(tmp_path, text):
    with pytest.raises(ValueError, match="no table of metrics"):
        read(tmp_path, text)


def test_an_empty_table_has_no_curves(tmp_path):
    assert np.array_equal(read(tmp_path, "step,a\n").curve("a")[1], [])
