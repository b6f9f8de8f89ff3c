"""What answers cost: time and energy of what was written, and of nothing else."""

import time

import pytest

from llm_lightning.inference.choices import FirstSample
from llm_lightning.inference.costs import Cost, cost_of, metered
from llm_lightning.inference.curve import curve_of
from llm_lightning.rollouts import LocalEngine


class Counted(LocalEngine):
    model = "counted"


@pytest.fixture
def powercap(tmp_path):
    """A processor's counter, as Linux shows it."""
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0\n"), ("energy_uj", "5000000\n"), ("max_energy_range_uj", "262143328850\n")):
        (zone / name).write_text(text)
    return tmp_path / "powercap"


def use(powercap, joules):
    file = powercap / "intel-rapl:0" / "energy_uj"
    file.write_text(f"{int(file.read_text()) + int(joules * 1e6)}\n")


def test_tokens_have_a_price_in_seconds_and_joules(tmp_path, powercap):
    engine, path = Counted("somewhere"), tmp_path / "costs.jsonl"
    for tokens, joules in ((30, 60.0), (10, 20.0)):
        with metered(engine, path, True, powercap) as meter:
            time.sleep(0.05)
            use(powercap, joules)
            meter.tokens += tokens
    with metered(engine, path, True, powercap):
        use(powercap, 500.0)  # nothing was written: all was known
    with path.open("a") as file:
        file.write('{"model": "coun')  # a killed process
    found = cost_of([path, tmp_path / "missing"], "counted")
    assert found.joules == pytest.approx(80 / 40)
    assert 0.1 / 40 <= found.seconds < 1 / 40
    assert cost_of([path], "another") is None


def test_energy_is_not_measured_where_processes_share_a_machine(tmp_path, powercap):
    path = tmp_path / "costs.jsonl"
    with metered(Counted("somewhere"), path, False, powercap) as meter:
        use(powercap, 9.0)
        meter.tokens += 3
    assert cost_of([path], "counted").joules is None


def test_the_curve_is_drawn_over_them(tmp_path):
    sample = {"text": "a", "num_tokens": 10, "is_finished": True, "rewards": {"truth": 1.0}}
    rows = [{"samples": [sample] * 4}] * 3
    curve = curve_of(rows, "truth", {"first": FirstSample()}, {}, Cost(0.5, 3.0))
    assert curve.as_json()["seconds"] == [5.0, 10.0, 20.0]
    assert curve.as_json()["joules"] == [30.0, 60.0, 120.0]
    head, first, *_ = curve.table().splitlines()
    assert head.split()[:4] == ["samples", "tokens", "seconds", "joules"] and first.split()[:4] == [
        "1",
        "10",
        "5",
        "30",
    ]
    assert "joules" not in curve_of(rows, "truth", {"first": FirstSample()}, {}, Cost(0.5, None)).as_json()
