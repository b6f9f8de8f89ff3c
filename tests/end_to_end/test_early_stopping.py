"""A run that stops early, from the command line: it ends whole, resumes bit for bit, and is known to be finished."""

import re
import signal
import time

import pytest
import torch

from tests.end_to_end.test_resume import losses, steps_done

STOPPING = """
trainer:
  val_check_interval: 3
  callbacks+:
    class_path: StopWhen
    init_args:
      conditions:
        - {class_path: NoImprovement, init_args: {patience: 2, min_delta: 0.5}}
        - {class_path: NotFinite}
        - {class_path: Budget, init_args: {tokens: 100000}}
"""
FIT = ("fit", "--config", "tiny.yaml", "--config", "stopping.yaml")
# The first validation is at step 3; none of the next two is better by 0.5.
LAST = 9


@pytest.fixture
def stopping(folder):
    (folder / "stopping.yaml").write_text(STOPPING)
    return folder


def checkpoint(root, step):
    return torch.load(root / "checkpoints" / f"step={step}.ckpt", weights_only=True)


@pytest.mark.slow  # five runs
def test_a_killed_run_stops_where_the_uninterrupted_one_does_and_says_so_ever_after(command, run, stopping):
    code, output = run(*FIT, "--trainer.default_root_dir=straight")
    assert code == 0 and f"Stopping at step {LAST}: val/loss has not improved" in output, output
    assert "patience 2) at step 9" in output, "the summary"
    process = command(*FIT)
    while process.poll() is None and steps_done(stopping) < 7:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    code, output = run(*FIT)
    assert code == 0 and "step=6.ckpt" in output, output
    root, straight = stopping / "run", stopping / "straight"
    assert losses(root) == losses(straight) and max(map(int, losses(root))) == LAST
    ours, theirs = checkpoint(root, LAST), checkpoint(straight, LAST)
    assert all(torch.equal(ours["state_dict"][name], theirs["state_dict"][name]) for name in theirs["state_dict"])
    ours, theirs = ours["callbacks"]["EarlyStopping"], theirs["callbacks"]["EarlyStopping"]
    assert ours["stopped"] == theirs["stopped"] and ours["conditions"] == theirs["conditions"]

    before = (root / "model" / "last" / "model.safetensors").stat().st_mtime_ns
    code, output = run(*FIT)
    assert code == 0 and f"finished: it was stopped at step {LAST}: val/loss has not improved" in output, output
    assert (root / "model" / "last" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_taken_out_the_run_goes_on_as_if_it_had_never_stopped(run, stopping):
    """The stop is off the schedule of validations: not even the numbers of the steps may show that there was one."""
    budget = ("--config=tiny.yaml", "--trainer.callbacks+={class_path: StopWhen, init_args: {conditions: "
              "[{class_path: Budget, init_args: {tokens: 2300}}]}}")  # fmt: skip
    code, output = run("fit", *budget)
    assert code == 0 and "Stopping at step 5: the budget of 2,300 tokens is used up." in output, output
    stopped = losses(stopping / "run")
    assert stopped.pop("5")[1], "validated at the end"
    assert run("fit", "--config=tiny.yaml")[0] == 0
    assert run("fit", "--config=tiny.yaml", "--trainer.default_root_dir=straight")[0] == 0
    ours, straight = losses(stopping / "run"), losses(stopping / "straight")
    assert ours.keys() == straight.keys() and ours.pop("5")[0] == straight.pop("5")[0]
    assert ours == straight and stopped.items() <= straight.items()


def test_the_best_weights_are_what_a_later_command_judges(run, stopping):
    """A learning rate that ruins the network makes an earlier validation the best."""
    args = ("--config=tiny.yaml", "--config=restoring.yaml", "--model.optimizer.lr=3")
    (stopping / "restoring.yaml").write_text(STOPPING + "      restore_best: true\n")
    code, output = run("fit", *args)
    assert code == 0 and "The weights are those of step" in output, output
    last, best = (stopping / "run" / "model" / name / "model.safetensors" for name in ("last", "best"))
    assert last.read_bytes() == best.read_bytes()
    code, output = run("validate", *args)
    assert code == 0 and "best=3.ckpt" in output, output
    assert re.search(r"val/loss\W+" + losses(stopping / "run")["3"][1][:7], output), output
