"""A stop that comes at a bad moment, on one rank and on two: nothing is lost, nothing hangs, nothing is done twice."""

import json
import signal
import time

import pytest

from tests.distributed.test_two_ranks import FIT, column

TWO = ("--data.batch_size=2", "--trainer.devices=2", "--trainer.strategy=ddp")
PACE = "--trainer.callbacks+={class_path: tests.slurm.pace.Pace, init_args: {seconds: [%s], validation_seconds: %s}}"


def noted(folder):
    path = folder / "run" / "rank-0.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(process, condition):
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(), TWO], ids=["one rank", "two ranks"])
def test_a_stop_within_a_validation_is_answered_there_and_the_validation_begun_anew(
    fresh_command, fresh_run, folder, ranks
):
    fit = (*FIT, "--data.num_workers=2", "--model.backbone.dropout=0.1", *ranks)
    code, output = fresh_run(*fit, "--trainer.default_root_dir=straight")
    assert code == 0, output

    process = fresh_command(*fit, PACE % (0, 0.5))
    wait_for(process, lambda: any("validation_batch" in line for line in noted(folder)))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "Stopped in the validation of step 4, saved run/checkpoints/step=4.ckpt" in output
    assert "Traceback" not in output and len([line for line in noted(folder) if "validation_batch" in line]) <= 4
    assert column(folder / "run", "val/loss") == []

    code, output = fresh_run(*fit)
    assert code == 0 and "step=4.ckpt" in output, output
    for name in ("train/loss", "val/loss", "step", "tokens"):
        assert column(folder / "run", name) == column(folder / "straight", name), name
    assert len(column(folder / "run", "val/loss")) == 2


@pytest.mark.slow
def test_a_time_limit_is_a_stop(fresh_run, folder):
    """Of the process, imports and all; the same command goes on until it is through."""
    limit = "--trainer.callbacks+={class_path: GracefulStop, init_args: {time_limit_s: %s, stop_before_s: 1}}"
    code, output = fresh_run(*FIT, *TWO, PACE % (0.1, 0), limit % 2)
    assert code == 128 + signal.SIGUSR1, output
    assert "Stopped at step" in output and "The time limit is near." in output
    code, output = fresh_run(*FIT, *TWO, limit % 600)
    assert code == 0 and len(column(folder / "run", "train/loss")) == 8, output
