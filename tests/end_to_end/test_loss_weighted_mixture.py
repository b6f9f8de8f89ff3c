"""Shares that follow validation losses, by the command line: killed runs, two ranks, and what is refused."""

import csv
import json
import random
import signal
import time

import pytest
import torch

from tests.distributed.commands import run_all

WEIGHS = "--trainer.callbacks+={class_path: LossWeightedMixture, init_args: {reference: {docs: 1, numbers: 1}}}"
SHARES = ("train/share/docs", "train/share/numbers")


@pytest.fixture
def sources(folder, texts):
    (folder / "docs.jsonl").write_text(texts)
    counting = [" ".join(str(number) for number in range(start, start + 150)) for start in range(0, 4_000, 100)]
    (folder / "numbers.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in counting))
    return [{"path": "docs.jsonl", "weight": 4}, {"path": "numbers.jsonl", "weight": 1}]


def fit(sources, *args):
    mixture = ("--data.path=null", f"--data.sources={json.dumps(sources)}", "--trainer.val_check_interval=4")
    return (
        "fit",
        "--config=tiny.yaml",
        *mixture,
        "--model.schedule.kind=constant",
        WEIGHS,
        "--trainer.max_steps=12",
        *args,
    )


def metrics(folder, *names):
    try:
        with (folder / "metrics.csv").open() as file:
            return [tuple(row[name] for name in names) for row in csv.DictReader(file) if row.get(names[0])]
    except FileNotFoundError:
        return []


def weights(folder):
    return torch.load(folder / "checkpoints" / "step=12.ckpt", weights_only=True)["state_dict"]


def assert_same(one, other):
    assert metrics(one, "train/loss", *SHARES) == metrics(other, "train/loss", *SHARES)
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(ours[name], wanted) for name, wanted in theirs.items())


@pytest.mark.slow
def test_a_run_that_was_killed_twice_is_a_straight_one_to_the_bit(command, run, folder, sources):
    code, output = run(*fit(sources, "--trainer.default_root_dir=straight"))
    assert code == 0, output
    shares = metrics(folder / "straight", *SHARES)
    assert len(shares) == 12 and len(set(shares)) == 3  # validated after each 4 steps
    assert shares[0] == ("0.800000012", "0.200000003")
    killed = 0
    for steps, workers in ((5, 1), (9, 0)):
        process = command(*fit(sources, f"--data.num_workers={workers}"))
        while process.poll() is None and len(metrics(folder / "run", "train/loss")) < steps:
            time.sleep(0.005)
        time.sleep(random.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    code, output = run(*fit(sources))
    assert code == 0 and killed == 2, output
    assert_same(folder / "run", folder / "straight")


@pytest.mark.slow
def test_two_ranks_move_the_same_shares_and_go_on(folder, cache, sources):
    two = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2")
    commands = [fit(sources, *two, f"--trainer.max_steps={steps}") for steps in (6, 12)]
    run_all(folder, cache, [fit(sources, *two, "--trainer.default_root_dir=straight"), *commands], num_ranks=2)
    assert_same(folder / "run", folder / "straight")
    run_all(folder, cache, [fit(sources, "--trainer.default_root_dir=one")])
    one, other = (metrics(folder / name, *SHARES) for name in ("one", "straight"))
    assert len(set(one)) == 3
    for mine, theirs in zip(one, other, strict=True):
        assert [float(share) for share in mine] == pytest.approx([float(share) for share in theirs], abs=1e-3)


def test_what_does_not_go_with_it_ends_before_anything_is_read(run, folder, sources):
    sources[0]["weight_schedule"] = [[3000, 1]]
    code, output = run(*fit(sources))
    assert code == 2 and "would both say what its share is" in output and "Traceback" not in output
    assert "Tokenizing" not in output and not (folder / "run" / "checkpoints").exists()
