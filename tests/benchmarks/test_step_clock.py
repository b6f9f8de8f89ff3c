import json
import time

import pytest

from benchmarks.step_clock import StepClock, Stopwatch


def test_clock_times_the_steps_after_the_warm_up(tmp_path):
    clock = StepClock(tmp_path / "result.json", warmup=1, steps=2)
    for _ in range(3):
        clock.tick()
    clock.report(loss=1.5)
    figures = json.loads((tmp_path / "result.json").read_text())
    assert figures["steps"] == 2 and figures["loss"] == 1.5 and figures["wall_s"] > 0
    assert 10 < figures["peak_memory_mb"] < 10_000


@pytest.mark.parametrize("steps", [2, 4])
def test_clock_refuses_another_number_of_steps(tmp_path, steps):
    clock = StepClock(tmp_path / "result.json", warmup=1, steps=2)
    for _ in range(steps):
        clock.tick()
    with pytest.raises(RuntimeError, match=f"{steps} steps"):
        clock.report(loss=1.0)


def test_clock_is_told_how_long_a_pass_is(tmp_path):
    clock = StepClock(tmp_path / "result.json", warmup=2, steps=None)
    clock.expect(5)
    timed = []
    for _ in range(5):
        timed.append(clock.is_timing)
        clock.tick()
    clock.report(loss=1.0, records=7.0)
    figures = json.loads((tmp_path / "result.json").read_text())
    assert timed == [False, False, True, True, True]
    assert figures["steps"] == 3 and figures["records"] == 7.0


def test_a_pass_must_be_longer_than_the_warm_up(tmp_path):
    with pytest.raises(RuntimeError, match="2 steps"):
        StepClock(tmp_path / "result.json", warmup=2, steps=None).expect(2)


def test_stopwatch_adds_up_its_blocks_alone(tmp_path):
    stopwatch = Stopwatch()
    for _ in range(2):
        with stopwatch:
            time.sleep(0.05)
        time.sleep(0.2)
    stopwatch.report(tmp_path / "result.json")
    figures = json.loads((tmp_path / "result.json").read_text())
    assert 0.1 <= figures["wall_s"] < 0.25 and figures["cpu_s"] < 0.1
