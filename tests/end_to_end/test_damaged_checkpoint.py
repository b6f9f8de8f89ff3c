"""A newest checkpoint that a disk changed costs the steps behind the one before, and no more."""

import csv

import pytest

TINY = ("fit", "--config", "tiny.yaml", "--trainer.val_check_interval=9")


def losses(path):
    with (path / "metrics.csv").open() as file:
        return [(row["step"], row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.slow  # four runs
def test_the_run_goes_on_from_the_one_before(run, folder):
    code, output = run(*TINY, "--trainer.max_steps=6")
    assert code == 0, output
    newest = folder / "run" / "checkpoints" / "step=6.ckpt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 4
    newest.write_bytes(data)
    code, output = run("validate", *TINY[1:])
    assert code == 0 and "step=6.ckpt is damaged" in output and "Weights: run/checkpoints/step=3.ckpt" in output
    code, output = run(*TINY, "--trainer.max_steps=9")
    assert code == 0 and "step=6.ckpt is damaged" in output and "Going on from run/checkpoints/step=3.ckpt" in output
    assert "Traceback" not in output
    assert newest.exists() and newest.with_name("step=6.ckpt.damaged").exists()
    code, output = run(*TINY, "--trainer.max_steps=9", "--trainer.default_root_dir=whole")
    assert code == 0, output
    assert losses(folder / "run") == losses(folder / "whole") and len(losses(folder / "run")) == 9
