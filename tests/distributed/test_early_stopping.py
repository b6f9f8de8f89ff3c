"""Two ranks (DDP over gloo) stop at the same step, and what stops them counts all ranks."""

import shutil

import pytest

from tests.distributed.test_two_ranks import FIT, column

TWO = ("--data.batch_size=2", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accumulate_grad_batches=2")


def budget(limit: str) -> str:
    return (
        "--trainer.callbacks+={class_path: StopWhen, init_args: {restore_best: true, conditions: "
        f"[NoImprovement, {{class_path: Budget, init_args: {{{limit}}}}}]}}}}"
    )


@pytest.mark.slow
def test_two_ranks_stop_together_stay_stopped_and_go_on_together(fresh_run, folder):
    # No two clocks are the same, so that one rank would see the time over before the other.
    code, output = fresh_run(*FIT, *TWO, budget("hours: 1e-9"))
    assert code == 0 and "Stopping at step 1: the budget of 1e-09 hours is used up." in output, output

    shutil.rmtree(folder / "run" / "model" / "last")  # as if killed before it was written
    code, output = fresh_run(*FIT, *TWO, budget("hours: 1e-9"))
    assert code == 0 and "hours is used up at step 1" in output, output
    assert (folder / "run" / "model" / "last" / "config.json").exists()
    assert len(column(folder / "run", "train/loss")) == 1

    code, output = fresh_run(*FIT, *TWO, budget("tokens: 2000"))
    assert code == 0 and "the budget of 2,000 tokens is used up" in output, output
    tokens = column(folder / "run", "tokens")
    assert tokens[-2] < 2000 <= tokens[-1] and 450 < tokens[-1] - tokens[-2] < 512, "of both ranks"
