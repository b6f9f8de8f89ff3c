"""A run killed at any moment and started again with the same command gives the same losses, bit for bit."""

import csv
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

FIT = ("fit", "--config", "tiny.yaml")


def losses(folder):
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    return {row["step"]: (row["train/loss"], row.get("val/loss")) for row in rows}


def weights(folder):
    return torch.load(folder / "checkpoints" / "step=24.ckpt", weights_only=True)["state_dict"]


@pytest.fixture
def uninterrupted(run, folder):
    code, output = run(*FIT, "--trainer.default_root_dir", "straight")
    assert code == 0, output
    return folder / "straight"


def steps_done(folder) -> int:
    try:
        return len(losses(folder / "run"))
    except FileNotFoundError:
        return 0


def kill_after_steps(command, folder, steps, *args):
    """SIGKILL once `steps` are in the metrics; False where the run was over before."""
    process = command(*FIT, *args)
    while process.poll() is None and steps_done(folder) < steps:
        time.sleep(0.005)
    time.sleep(random.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def trial(command, run, folder, uninterrupted, steps, *args):
    shutil.rmtree(folder / "run", ignore_errors=True)
    killed = kill_after_steps(command, folder, steps, *args)
    code, output = run(*FIT, *args)
    assert code == 0, output
    assert losses(folder / "run") == losses(uninterrupted)
    ours, theirs = weights(folder / "run"), weights(uninterrupted)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    return killed


@pytest.mark.parametrize(("steps", "workers"), [pytest.param(4, 0, marks=pytest.mark.slow), (14, 2)])
def test_kill_and_resume(command, run, folder, uninterrupted, steps, workers):
    assert trial(command, run, folder, uninterrupted, steps, f"--data.num_workers={workers}")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_ten_kills_at_random_moments(command, run, folder, uninterrupted, workers):
    killed = 0
    for _ in range(10):
        killed += trial(command, run, folder, uninterrupted, random.randint(0, 23), f"--data.num_workers={workers}")
    assert killed >= 8


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGINT, signal.SIGHUP))]
)
def test_a_stop_saves_and_says_how_to_go_on(command, run, folder, uninterrupted, number):
    process = command(*FIT, "--data.num_workers=2")
    while steps_done(folder) < 5:
        time.sleep(0.005)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Run the same command again to continue" in output and "Traceback" not in output
    step = max(int(s) for s in losses(folder / "run"))
    assert (folder / "run" / "checkpoints" / f"step={step}.ckpt").is_file()
    code, output = run(*FIT)
    assert code == 0 and f"step={step}.ckpt" in output
    assert losses(folder / "run") == losses(uninterrupted)


@pytest.mark.parametrize(
    ("name", "step", "in_validation"),
    [
        pytest.param("SIGTERM", 7, "false", marks=pytest.mark.slow),
        pytest.param("SIGTERM", 8, "true", marks=pytest.mark.slow),
        pytest.param("SIGTERM", 15, "false", marks=pytest.mark.slow),
        pytest.param("SIGTERM", 16, "true", marks=pytest.mark.slow),
        ("SIGKILL", 16, "true"),
    ],
)
def test_no_validation_is_lost_where_the_run_stops(run, folder, name, step, in_validation):
    """Step 8 validates, and so does step 16, which is the last one, until the run is made longer."""
    args = (*FIT, "--model.schedule.kind=constant")
    init_args = f"{{name: {name}, step: {step}, in_validation: {in_validation}}}"
    place = f"{{class_path: tests.signals.SignalAt, init_args: {init_args}}}"
    code, output = run(*args, "--trainer.max_steps=16", f"--trainer.callbacks+={place}")
    assert code == (-9 if name == "SIGKILL" else 128 + signal.SIGTERM), output
    for steps in (16, 24):
        code, output = run(*args, f"--trainer.max_steps={steps}")
        assert code == 0 and "is finished" not in output, output
        if steps == 16:
            assert "step 16, val loss" in output
            ended = losses(folder / "run")
    assert run(*args, "--trainer.default_root_dir=straight")[0] == 0
    straight = losses(folder / "straight")
    assert ended == {step: straight[step] for step in ended} and len(ended) == 16
    assert losses(folder / "run") == straight


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc for whether the handler is there")
def test_a_signal_during_the_imports_ends_the_run_after_its_first_step(fresh_command, folder):
    process = fresh_command(*FIT)
    status = Path(f"/proc/{process.pid}/status")
    usr1 = 1 << (signal.SIGUSR1 - 1)
    while not int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16) & usr1:
        time.sleep(0.001)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGUSR1, output
    assert "Stopped at step 1, saved" in output
    assert (folder / "run" / "checkpoints" / "step=1.ckpt").is_file()


def test_a_finished_run_says_so_and_can_be_extended(run, folder):
    """Half, then the whole, equals the whole: a checkpoint at the last step is one in the middle of the longer run."""
    constant = ("--model.schedule.kind=constant",)
    assert run(*FIT, *constant, "--trainer.max_steps=12")[0] == 0
    before = (folder / "run" / "model" / "last" / "model.safetensors").read_bytes()
    code, output = run(*FIT, *constant, "--trainer.max_steps=12")
    assert code == 0 and "finished" in output
    assert (folder / "run" / "model" / "last" / "model.safetensors").read_bytes() == before
    assert run(*FIT, *constant)[0] == 0
    assert run(*FIT, *constant, "--trainer.default_root_dir=straight")[0] == 0
    assert losses(folder / "run") == losses(folder / "straight")


def test_starting_over_keeps_the_earlier_run(run, folder):
    assert run(*FIT, "--trainer.max_steps=3")[0] == 0
    code, output = run(*FIT, "--trainer.max_steps=3", "--resume=false")
    assert code == 0 and "Starting over" in output
    (kept,) = folder.glob("run.*")
    assert (kept / "checkpoints" / "step=3.ckpt").is_file()
    assert (folder / "run" / "checkpoints" / "step=3.ckpt").is_file()
