"""Energy by counters that are real files, over one rank and two, and over restarts."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from callbacks import CallbackError, Energy
from callbacks.monitoring.energy_counters import RaplCounter, find_counters
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_trainer
from tests.callbacks.tiny_run import finish, free_port

RANGE = 1_000_000  # microjoules, after which a counter begins anew


@pytest.fixture
def powercap(tmp_path):
    """A package with its cores, memory beside it, and the platform that holds all of them."""
    folder = tmp_path / "powercap"
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "psys"}
    for zone, name in zones.items():
        (folder / zone).mkdir(parents=True)
        (folder / zone / "name").write_text(f"{name}\n")
        (folder / zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
        (folder / zone / "energy_uj").write_text("900000\n")
    return folder


def use(zone: Path, microjoules: int) -> None:
    file = zone / "energy_uj"
    file.write_text(f"{(int(file.read_text()) + microjoules) % (RANGE + 1)}\n")


class Use(Callback):
    """Each batch takes 0.3 joules of the package, 0.1 of memory, and of the cores 0.2 that the package counts too."""

    def __init__(self, powercap: Path) -> None:
        self.powercap = powercap

    def on_train_batch_end(self, trainer, *_):
        if trainer.is_global_zero:
            for zone, microjoules in (("0", 300_000), ("0:0", 200_000), ("0:1", 100_000), ("1", 500_000)):
                use(self.powercap / f"intel-rapl:{zone}", microjoules)


class Counting(TinyModule):
    tokens_seen = 1_000


def fit(folder, powercap, max_steps=5, **settings):
    energy = Energy(powercap=powercap, **settings)
    trainer = tiny_trainer(folder, callbacks=[Use(powercap), energy], max_steps=max_steps)
    trainer.fit(Counting(), TinyData())
    return energy, trainer, json.loads((folder / "energy.json").read_text())


def test_packages_and_memory_are_counted_past_the_end_of_their_counters(tmp_path, powercap):
    energy, trainer, report = fit(tmp_path, powercap, price_per_kwh=3.6e6, currency="EUR")
    assert report["joules"] == pytest.approx(5 * 0.4) and report["kwh"] == pytest.approx(2 / 3.6e6)
    assert report["joules_per_token"] == pytest.approx(2 / 1_000)
    assert report["cost"] == pytest.approx(2) and report["source"] == "measured by RAPL" and report["missing"] == []
    assert sorted(round(each["joules"], 6) for each in report["devices"].values()) == [0.5, 1.5]
    assert float(trainer.callback_metrics["energy/joules"]) == pytest.approx(2)
    assert energy.text() == "2 J (5.556e-07 kWh), measured by RAPL; 0.002 J a token; 2 EUR"


def test_restarts_add_up(tmp_path, powercap):
    seconds = fit(tmp_path, powercap)[2]["seconds"]
    report = fit(tmp_path, powercap, max_steps=3)[2]
    assert report["joules"] == pytest.approx(8 * 0.4) and report["seconds"] > seconds
    (tmp_path / "energy.json").write_text('{"devices": {"x": {"source": "RAPL", "joules": -1}}}')
    with pytest.warns(UserWarning, match="not as it was written"):
        assert fit(tmp_path, powercap)[2]["joules"] == pytest.approx(2)


def test_ranks_of_one_machine_count_its_processor_once(tmp_path, powercap, processes):
    run = tmp_path / "run"
    callbacks = partial(two_ranks, powercap)
    assert finish(processes, run, world_size=2, callbacks=callbacks, port=free_port(), max_steps=4) == [0, 0]
    report = json.loads((run / "energy.json").read_text())
    assert report["joules"] == pytest.approx(4 * 0.4)


def two_ranks(powercap):
    return [Use(powercap), Energy(powercap=powercap)]


def test_without_a_counter_nothing_is_made_up(tmp_path):
    energy, _, report = fit_without(tmp_path, price_per_hour=3600)
    assert report["joules"] is None and report["kwh"] is None and report["source"] == "not measured"
    assert report["cost"] == pytest.approx(report["seconds"])
    assert re.fullmatch(r"not measured: no RAPL \(\S+ has no counters\); \S+", energy.text())


def test_an_estimate_is_called_one(tmp_path):
    energy, _, report = fit_without(tmp_path, assumed_watts=100)
    assert report["joules"] == pytest.approx(100 * report["seconds"])
    assert report["source"] == "an estimate from assumed_watts" and "an estimate" in energy.text()


def fit_without(folder, **settings):
    energy = Energy(powercap=folder / "nowhere", **settings)
    trainer = tiny_trainer(folder, callbacks=[energy], max_steps=2)
    trainer.fit(TinyModule(), TinyData())
    return energy, trainer, json.loads((folder / "energy.json").read_text())


def test_a_counter_that_cannot_be_read_is_named(powercap):
    (powercap / "intel-rapl:0:1" / "max_energy_range_uj").unlink()
    found, missing = find_counters(torch.device("cpu"), powercap)
    assert found == [] and "max_energy_range_uj" in missing[0]


def test_a_counter_that_fails_later_is_a_warning(tmp_path, powercap):
    class Fail(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2:
                (powercap / "intel-rapl:0:1" / "energy_uj").unlink()

    class UseMemory(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 1:
                use(powercap / "intel-rapl:0:1", 50_000)

    trainer = tiny_trainer(tmp_path, callbacks=[UseMemory(), Fail(), Energy(powercap=powercap)], max_steps=3)
    with pytest.warns(UserWarning, match="dram is not counted any more"):
        trainer.fit(TinyModule(), TinyData())
    assert trainer.global_step == 3
    assert json.loads((tmp_path / "energy.json").read_text())["joules"] == pytest.approx(0.05)  # what it counted stays


def test_a_counter_tells_what_came_since_it_was_made(powercap):
    counter = RaplCounter(powercap / "intel-rapl:0")
    use(powercap / "intel-rapl:0", 250_000)
    assert counter.joules() == 0.25 and counter.joules() == 0.25
    assert counter.device.endswith(" intel-rapl:0 package-0")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"price_per_kwh": 0}, "Energy.price_per_kwh: 0 is not a number above 0"),
        ({"assumed_watts": float("inf")}, "Energy.assumed_watts: inf"),
        ({"price_per_kwh": 1, "price_per_hour": 1}, "exclude each other"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(CallbackError, match=message):
        Energy(**settings)
