"""What a budget chooses from, and how it is told."""

import math
from pathlib import Path

import pytest

from callbacks.monitoring.measurement import Quality, Speed
from callbacks.quantization.choice import CompressionBudget, Measured
from llm_lightning.compression.front import Candidate, as_text, draw, front


def candidate(pruning: str, scheme: str, perplexity: float, megabytes: float, tokens_per_s: float = 10) -> Candidate:
    quality = Quality(math.log(perplexity), 100, 0.1, 0.9)
    measured = Measured(scheme, quality, Speed(100, tokens_per_s), int(megabytes * 1e6), int(megabytes * 1e6), 1.5)
    return Candidate(pruning, scheme, measured, Path("somewhere"))


DENSE, DENSE_8 = candidate("dense", "original", 20, 500), candidate("dense", "int8", 21, 220)
CUT, CUT_8 = candidate("cut", "original", 23, 400), candidate("cut", "int8", 24, 180, 30)
BROKEN = candidate("broken", "int8", math.nan, 1)
ALL = [DENSE, DENSE_8, CUT, CUT_8, BROKEN]


def test_the_front_has_what_no_other_one_beats():
    assert front(ALL) == [CUT_8, DENSE_8, DENSE]


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (CompressionBudget.of("10%", None), DENSE_8),
        (CompressionBudget.of("21%", None), CUT_8),
        (CompressionBudget.of(None, 200), CUT_8),
        (CompressionBudget.of(None, 450), DENSE_8),
        (CompressionBudget.of(None, None, perplexity=21.5), DENSE_8),
        (CompressionBudget.of(None, None, tokens_per_s=20), CUT_8),
        (CompressionBudget.of(None, None, tokens_per_s=40), None),
    ],
)
def test_a_budget_of_size_speed_or_perplexity_chooses(budget, kept):
    chosen = budget.choose([each.measured for each in ALL], DENSE.measured)
    assert chosen is (kept and kept.measured)


def test_figures_survive_json():
    assert Measured.from_dict("int8", CUT_8.measured.as_dict()) == CUT_8.measured


def test_the_table_says_what_speaks_against_each(tmp_path):
    lines = as_text(ALL, DENSE.measured, CompressionBudget.of("10%", 450), DENSE_8).splitlines()
    told = {line.split()[0] + " " + line.split()[1]: line for line in lines}
    assert "kept" in told["dense int8"] and "+5.0%" in told["dense int8"]
    assert "refused: perplexity +20.0%, over 10.0%" in told["cut int8"]
    assert "refused: 500.0 MB, over 450" in told["dense original"]
    assert "refused: its loss is not finite" in told["broken int8"]
    free = as_text(ALL, DENSE.measured, CompressionBudget.of("90%", None), CUT_8)
    beaten = next(line for line in free.splitlines() if line.split()[:2] == ["cut", "original"])
    assert "another one is smaller and better" in beaten
    draw(tmp_path / "front.png", ALL, DENSE_8)
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
