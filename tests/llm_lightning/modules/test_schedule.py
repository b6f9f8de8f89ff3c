"""Learning-rate factors against their definitions."""

import math

import pytest

from llm_lightning.errors import UserError
from llm_lightning.modules.schedule import Schedule


def test_cosine():
    schedule = Schedule("cosine", warmup=10, min_ratio=0.1)
    assert schedule.factor(0, 110) == pytest.approx(1 / 11)
    assert schedule.factor(9, 110) == pytest.approx(10 / 11)
    assert schedule.factor(10, 110) == 1.0
    assert schedule.factor(60, 110) == pytest.approx(0.55)
    assert schedule.factor(110, 110) == pytest.approx(0.1)
    assert schedule.factor(500, 110) == pytest.approx(0.1)
    expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.25))
    assert schedule.factor(35, 110) == pytest.approx(expected)


def test_linear_constant_and_shares():
    assert Schedule("linear", warmup=0, min_ratio=0).factor(25, 100) == pytest.approx(0.75)
    assert Schedule("constant", warmup=0.1).factor(5, 100) == pytest.approx(6 / 11)
    assert Schedule("constant", warmup=0.1).factor(99, 100) == 1.0
    assert Schedule("constant", warmup=5).factor(10**9, math.inf) == 1.0


def test_wsd_stays_then_falls_in_its_last_share():
    schedule = Schedule("wsd", warmup=10, decay=0.2, min_ratio=0)
    assert schedule.factor(79, 100) == schedule.factor(50, 100) == 1.0
    assert schedule.factor(90, 100) == pytest.approx(0.5)
    assert schedule.factor(100, 100) == 0.0


def test_tokens_start_above_zero():
    schedule = Schedule("cosine", warmup=1000, unit="tokens", total=10_000)
    assert 0 < schedule.factor(0, 10_000) < schedule.factor(500, 10_000) == 0.5


@pytest.mark.parametrize(
    ("schedule", "field"),
    [
        (Schedule(min_ratio=2), "min_ratio=2"),
        (Schedule(decay=0), "decay=0"),
        (Schedule(warmup=-1), "warmup=-1"),
        (Schedule(unit="tokens"), "schedule.total"),
        (Schedule(warmup=100, total=50), "warmup=100"),
    ],
)
def test_impossible_settings_are_named(schedule, field):
    with pytest.raises(UserError, match=field):
        schedule.check()
