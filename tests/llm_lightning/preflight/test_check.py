"""`llm-lightning check`, and a fit that refuses what cannot fit."""

import re
from dataclasses import replace

import pytest
from lightning.pytorch import Trainer

from callbacks import RunCheckpoint
from llm_lightning.__main__ import main
from llm_lightning.preflight import capacity
from llm_lightning.preflight.disk import Disk, disk_of
from llm_lightning.preflight.memory import StepEstimate
from llm_lightning.preflight.refusal import warn_of_disk

HUGE = ["--model.backbone.config.hidden_size=4096", "--model.backbone.config.intermediate_size=33554432"]


@pytest.fixture
def here(folder, cache, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(cache))
    return folder


def test_check_says_what_a_fit_takes_and_leaves_nothing_behind(here, capsys):
    assert main(["check", "--config=tiny.yaml", "--trainer.default_root_dir=unborn"]) == 0
    said = capsys.readouterr().out
    assert "Memory of a step on each rank" in said and "(4 x 64 tokens)" in said
    assert re.search(r"optimizer +\d+ [KMG]iB", said) and re.search(r"Time of a step: [\d.]+ s", said)
    assert re.search(r"Disk: \d+ MiB for 3 checkpoints", said)
    assert "First batch: input_ids 4x64, labels 4x64, position_ids 4x64." in said
    assert not (here / "unborn").exists()


@pytest.mark.parametrize("command", ["fit", "check"])
def test_what_cannot_fit_is_refused_with_the_numbers_and_the_ways_out(here, capsys, command):
    assert main([command, "--config=tiny.yaml", "--trainer.default_root_dir=unborn", *HUGE]) == 2
    said = capsys.readouterr().err
    for words in ("fit", "GiB", "trainer/fsdp"):
        assert words in said
    assert "Traceback" not in said and "batch_size=1" not in said, "the states alone are too large"
    assert not (here / "unborn").exists()


def test_a_container_has_what_its_limit_says(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000000\n")
    monkeypatch.setattr(capacity, "CGROUP", tmp_path)
    assert capacity.capacity_of(capacity.torch.device("cpu"), 4).total == 250_000
    (tmp_path / "memory.max").write_text("max\n")
    assert capacity.capacity_of(capacity.torch.device("cpu"), 1).total > 2**28


def test_a_checkpoint_is_written_beside_those_that_are_kept():
    assert Disk(checkpoint=30, folder=10, kept=2, free=120).fits
    assert not Disk(checkpoint=30, folder=10, kept=2, free=119).fits
    assert Disk(checkpoint=30, folder=10, kept=2, free=60, there=60).fits, "older ones make room"


def test_a_fit_says_that_its_checkpoints_will_find_no_room(tmp_path, mount_small_disk):
    root = mount_small_disk(tmp_path / "disk", "700k") / "run"
    (root / "checkpoints").mkdir(parents=True)
    (root / "checkpoints" / "step=1.ckpt").write_bytes(b"0" * 2**19)
    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=root, callbacks=[RunCheckpoint(keep=1)],
        enable_model_summary=False,
    )  # fmt: skip
    small = StepEstimate({}, kept_weights=60_000, kept_moments=120_000)  # two of 180 kB, and three folders
    assert disk_of(small, trainer).fits and disk_of(small, trainer).there == 2**19
    large = disk_of(replace(small, kept_moments=2**20), trainer)
    with pytest.warns(UserWarning, match=r"too small.* 2 checkpoints of 1 MiB .* 0 MiB held by those that are there"):
        warn_of_disk(large, root)
