"""Runs that count epochs: killed and gone on, finished, extended."""

import csv
import shutil

import pytest

FIT = (
    "fit", "--config=tiny.yaml", "--trainer.max_steps=-1", "--data.batch_size=16", "--model.schedule.kind=constant",
    "--data.val_share=0.5",
)  # fmt: skip
STEPS = 13  # of an epoch


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        kept = ("step", "epoch", "data/num_tokens", "train/loss", "train/lr", "val/loss")
        return [tuple(row.get(name) for name in kept) for row in csv.DictReader(file)]


def kill_at(step, in_validation="false", every=3):
    init_args = f"{{name: SIGKILL, step: {step}, in_validation: {in_validation}}}"
    yield f"--trainer.callbacks+={{class_path: tests.signals.SignalAt, init_args: {init_args}}}"
    yield f"--trainer.callbacks+={{class_path: RunCheckpoint, init_args: {{every_n_steps: {every}}}}}"


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["--trainer.val_check_interval=8", "--trainer.val_check_interval=1.0"])
def test_kills_and_more_epochs_lose_no_row(run, folder, interval):
    fit = (*FIT, interval)
    assert run(*fit, "--trainer.max_epochs=1")[0] == 0
    root = folder / "run"
    before = (root / "metrics.csv").read_text()
    code, output = run(*fit, "--trainer.max_epochs=1")
    assert code == 0 and f"This run is finished: run/checkpoints/step={STEPS}.ckpt ends its last epoch" in output
    assert "trainer.max_epochs" in output and (root / "metrics.csv").read_text() == before

    # A second resumption within an epoch that was begun behind a checkpoint at an epoch's end.
    fit = (*fit, "--trainer.max_epochs=2")
    assert run(*fit, *kill_at(STEPS + 2, every=1))[0] == -9
    assert run(*fit, *kill_at(STEPS + 4, every=100))[0] == -9
    code, output = run(*fit)
    assert code == 0 and f"step={STEPS + 2}.ckpt" in output, output
    assert run(*fit, "--trainer.default_root_dir=straight")[0] == 0
    assert rows(root) == rows(folder / "straight") and len(rows(root)) == 2 * STEPS

    shutil.rmtree(root / "model" / "last")  # as if killed before it was written
    before = (root / "metrics.csv").read_text()
    code, output = run(*fit)
    assert code == 0 and "nothing was left to train" in output and (root / "model" / "last").exists()
    assert (root / "metrics.csv").read_text() == before


def test_a_kill_before_the_last_export_adds_no_row(run, folder):
    fit = ("fit", "--config=tiny.yaml", "--trainer.max_steps=6", "--trainer.val_check_interval=4")
    assert run(*fit)[0] == 0
    before = (folder / "run" / "metrics.csv").read_text()
    shutil.rmtree(folder / "run" / "model" / "last")
    assert run(*fit)[0] == 0
    assert (folder / "run" / "metrics.csv").read_text() == before
    assert (folder / "run" / "model" / "last").exists()
