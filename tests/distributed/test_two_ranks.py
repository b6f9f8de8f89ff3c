"""Two ranks of real processes (DDP over gloo) against one."""

import csv

import pytest
import torch

from tests.ppo_runs import metrics

FIT = ("fit", "--config", "tiny.yaml", "--model.backbone.dropout=0", "--trainer.max_steps=8",
       "--trainer.val_check_interval=4")  # fmt: skip


def column(folder, name):
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.slow
def test_two_ranks_give_the_losses_and_the_weights_of_one(fresh_run, folder):
    """The same rows a step, split over ranks with different numbers of trained tokens."""
    one = (*FIT, "--data.batch_size=4", "--trainer.default_root_dir=one")
    two = (*FIT, "--data.batch_size=2", "--trainer.default_root_dir=two", "--trainer.devices=2",
           "--trainer.strategy=ddp")  # fmt: skip
    for args in (one, two):
        code, output = fresh_run(*args)
        assert code == 0, output
    for name in ("train/loss", "train/grad_norm", "train/bits_per_byte", "val/loss", "tokens"):
        found = column(folder / "two", name)
        assert found and found == pytest.approx(column(folder / "one", name), rel=1e-5), name
    weights = [
        torch.load(folder / name / "checkpoints" / "step=8.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "two")
    ]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_saved_on_two_resumed_on_one(fresh_run, folder):
    two = ("--data.batch_size=2", "--trainer.devices=2", "--trainer.strategy=ddp", "--model.schedule.kind=constant")
    one = ("--data.batch_size=4", "--model.schedule.kind=constant")
    assert fresh_run(*FIT, *one, "--trainer.default_root_dir=straight")[0] == 0
    code, output = fresh_run(*FIT, *two, "--trainer.max_steps=4")
    assert code == 0, output
    code, output = fresh_run(*FIT, *one)
    assert code == 0 and "step=4.ckpt" in output, output
    assert column(folder / "run", "train/loss") == pytest.approx(column(folder / "straight", "train/loss"), rel=1e-5)


@pytest.mark.slow
def test_two_ranks_of_ppo_are_one(fresh_run, ppo_folder):
    """The same prompts a step, the same completions, whitening, minibatches and running statistics over both ranks."""
    fit = ("fit", "--config", "ppo.yaml", "--trainer.max_steps=3")
    one = (*fit, "--trainer.default_root_dir=one")
    two = (*fit, "--data.batch_size=2", "--trainer.default_root_dir=two", "--trainer.devices=2",
           "--trainer.strategy=ddp")  # fmt: skip
    for args in (one, two):
        code, output = fresh_run(*args)
        assert code == 0, output
    found, expected = (metrics(ppo_folder / name) for name in ("two", "one"))
    assert found.keys() == expected.keys() == {"1", "2", "3"}
    for step, row in expected.items():
        assert row.keys() == found[step].keys()
        for name, value in row.items():
            # What is nearly zero by cancellation (losses over whitened advantages) differs in its last digits.
            assert float(found[step][name]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), (step, name)
    weights = [
        torch.load(ppo_folder / name / "checkpoints" / "step=3.ckpt", weights_only=True)["state_dict"]
        for name in ("one", "two")
    ]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-4)
