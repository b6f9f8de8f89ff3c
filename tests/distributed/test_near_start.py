"""Weights near their start on two ranks: those of one process, and after a stop the same to the bit."""

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.commands import run_all
from tests.distributed.stages import TWO, assert_same_folder, assert_same_metrics, fit, prepare

EWC = "--trainer.callbacks+={class_path: EWC, init_args: {strength: 300, path: old.jsonl, piece_len: 40}}"
L2SP = "--trainer.callbacks+={class_path: L2SP, init_args: {strength: 100}}"
FSDP2, DDP = "--trainer.strategy=fsdp2", "--trainer.strategy=ddp"
STOPPED, WHOLE = "--trainer.max_steps=2", "--trainer.max_steps=4"

pytestmark = pytest.mark.slow  # many runs, most of them on two ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory, texts, network, cache):
    """The folder of all runs: those on one rank, on two, straight ones and stopped ones that went on."""
    folder = tmp_path_factory.mktemp("near-start")
    prepare(folder, texts, network)
    (folder / "old.jsonl").write_text("".join(texts.splitlines(keepends=True)[:12]))
    one = [fit("pretrain", "ewc-one", EWC), fit("sft", "l2sp-one", L2SP), fit("pretrain", "free")]
    run_all(folder, cache, [*one, fit("pretrain", "from-file", EWC, STOPPED)])
    two = [fit("pretrain", f"ewc-{strategy.split('=')[1]}", strategy, EWC, *TWO) for strategy in (FSDP2, DDP)]
    two += [fit("sft", "l2sp-fsdp2", FSDP2, L2SP, *TWO), fit("ppo", "ppo", FSDP2, L2SP, *TWO)]
    two += [fit("pretrain", "stopped", FSDP2, EWC, *TWO, steps) for steps in (STOPPED, WHOLE)]
    two += [fit("pretrain", "from-file", FSDP2, EWC, *TWO, WHOLE)]
    run_all(folder, cache, two, num_ranks=2)
    return folder


def weights(run):
    (file,) = (run / "model" / "last").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize(
    ("name", "one"),
    [("ewc-fsdp2", "ewc-one"), ("ewc-ddp", "ewc-one"), ("l2sp-fsdp2", "l2sp-one"), ("from-file", "ewc-one")],
)
def test_two_ranks_pull_as_one_does(runs, name, one):
    assert_same_folder(runs / name / "model" / "last", runs / one / "model" / "last")
    assert_same_metrics(runs / name, runs / one)


def test_it_pulls(runs):
    free, pulled = weights(runs / "free"), weights(runs / "ewc-one")
    assert any(not torch.allclose(free[name], pulled[name], rtol=1e-4, atol=1e-5) for name in free)
    assert (runs / "ppo" / "metrics.csv").read_text().count("start/distance") == 1


def test_a_stopped_run_ends_as_a_straight_one_to_the_bit(runs):
    ours, theirs = weights(runs / "stopped"), weights(runs / "ewc-fsdp2")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
