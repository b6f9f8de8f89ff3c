import math

import pytest

from callbacks import CallbackError
from callbacks.monitoring.measurement import Quality, Speed
from callbacks.quantization.choice import CompressionBudget, Measured


def measured(name, perplexity, disk_bytes):
    return Measured(name, Quality(math.log(perplexity), 100), Speed(1.0, 1.0), disk_bytes, disk_bytes)


ORIGINAL = measured("original", 10.0, 400_000_000)
EIGHT, FOUR, TWO = measured("8", 10.1, 200_000_000), measured("4", 10.9, 110_000_000), measured("2", 90.0, 60_000_000)
BROKEN = Measured("broken", Quality(math.nan, 100), Speed(1.0, 1.0), 1, 1)
ALL = [BROKEN, EIGHT, TWO, FOUR]


@pytest.mark.parametrize(
    ("perplexity_increase", "megabytes", "kept"),
    [
        ("2%", None, EIGHT),
        (0.1, None, FOUR),
        ("900 %", None, TWO),
        ("0.5%", None, None),
        (None, 250, EIGHT),
        (None, 150, FOUR),
        (None, 50, None),
        (None, None, TWO),
        ("10%", 150, FOUR),
        ("2%", 150, None),
    ],
)
def test_the_smallest_that_holds_is_chosen_and_by_size_alone_the_best(perplexity_increase, megabytes, kept):
    assert CompressionBudget.of(perplexity_increase, megabytes).choose(ALL, ORIGINAL) is kept


def test_a_refusal_says_why():
    assert CompressionBudget.of("2%", None).refusal(FOUR, ORIGINAL) == "perplexity +9.0%, over 2.0%"
    assert CompressionBudget.of(None, 100).refusal(EIGHT, ORIGINAL) == "200.0 MB, over 100"
    assert CompressionBudget.of("2%", 250).refusal(EIGHT, ORIGINAL) == ""
    assert CompressionBudget.of(None, None).refusal(BROKEN, ORIGINAL) == "its loss is not finite"


@pytest.mark.parametrize("value", ["two", "-1%", -0.1, math.nan, "%"])
def test_a_share_that_is_none_is_refused(value):
    with pytest.raises(CallbackError, match="max_perplexity_increase"):
        CompressionBudget.of(value, None)


def test_a_size_that_is_none_is_refused():
    with pytest.raises(CallbackError, match="max_megabytes"):
        CompressionBudget.of(None, 0)
