"""Sharded checkpoints that are written while two ranks train on: what they hold, and a kill in the write."""

import pytest

from tests.distributed.commands import run_all
from tests.distributed.stages import TWO, assert_same_folder, fit, metrics, prepare

FSDP2 = "--trainer.strategy=fsdp2"
BACKGROUND = (
    "--trainer.strategy=llm_lightning.strategies.FSDP2Strategy",
    "--trainer.strategy.asynchronous_checkpoints=true",
    *TWO,
)
FOUR, SIX = "--trainer.max_steps=4", "--trainer.max_steps=6"
DISK = (
    "--trainer.callbacks+={{class_path: tests.distributed.slow_disk.SlowDisk, init_args: {{seconds: {}, kill_at: {}}}}}"
)

pytestmark = pytest.mark.slow  # two ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory, texts, network, cache):
    folder = tmp_path_factory.mktemp("asynchronous")
    prepare(folder, texts, network)
    run_all(
        folder,
        cache,
        [
            fit("pretrain", "plain", FSDP2, *TWO, SIX),
            fit("pretrain", "straight", *BACKGROUND, SIX, DISK.format(0.5, -1)),
            fit("pretrain", "in-parts", *BACKGROUND, FOUR),
            fit("pretrain", "in-parts", *BACKGROUND, SIX),
            fit("sft", "adapter", *BACKGROUND, SIX),
            fit("sft", "adapter-plain", FSDP2, *TWO, SIX),
        ],
        num_ranks=2,
    )
    return folder


@pytest.mark.parametrize("name", ["straight", "in-parts"])
def test_they_hold_what_those_hold_that_training_waits_for(runs, name):
    assert metrics(runs / name, 6) == metrics(runs / "plain", 6) and len(metrics(runs / name, 6)) == 6
    assert_same_folder(runs / name / "model" / "last", runs / "plain" / "model" / "last")
    found = sorted(path.name for path in (runs / name / "checkpoints").iterdir() if "step" in path.name)
    assert found[-1] == "step=6.ckpt" and not any("unfinished" in path for path in found)


def test_an_adapter_too(runs):
    assert metrics(runs / "adapter", 6) == metrics(runs / "adapter-plain", 6)


def test_training_does_not_wait(runs):
    lines = (runs / "straight" / "whole.txt").read_text().splitlines()
    assert "3 " in lines and "5 step=3.ckpt" in lines, lines  # step, checkpoints that are whole as it begins


def test_a_kill_in_the_write_leaves_the_one_before(fresh_run, folder):
    args = ("fit", "--config", "tiny.yaml", *BACKGROUND, "--model.backbone.dropout=0",
            "--trainer.val_check_interval=20", "--trainer.max_steps=9")  # fmt: skip
    code, output = fresh_run(*args, "--trainer.default_root_dir=whole")
    assert code == 0, output
    code, output = fresh_run(*args, DISK.format(3, 7))
    checkpoints = folder / "run" / "checkpoints"
    names = sorted(path.name for path in checkpoints.iterdir())
    assert code != 0 and ".step=6.ckpt.unfinished" in names and "step=6.ckpt" not in names, output
    code, output = fresh_run(*args)
    assert code == 0 and "step=3.ckpt" in output, output
    assert sorted(path.name for path in checkpoints.iterdir())[-1] == "step=9.ckpt"
    losses = [{s: r["train/loss"] for s, r in metrics(folder / name, 9).items()} for name in ("run", "whole")]
    assert len(losses[0]) == 9 and losses[0] == losses[1]
