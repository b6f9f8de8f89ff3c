"""Blocks that are left out on two ranks: the same as on one, under DDP and sharded, and after a stop to the bit."""

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.commands import run_all
from tests.distributed.stages import TWO, assert_same_folder, assert_same_metrics, fit, prepare

DROP = "--trainer.callbacks+={class_path: LayerDrop, init_args: {rate: 0.5}}"
FSDP2, DDP = "--trainer.strategy=fsdp2", "--trainer.strategy=ddp"

pytestmark = pytest.mark.slow  # six runs, four of them on two ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory, texts, network, cache):
    """The folder of all runs: on one rank, on two, and a stopped one that went on."""
    folder = tmp_path_factory.mktemp("layer-drop")
    prepare(folder, texts, network)
    run_all(folder, cache, [fit("pretrain", "one", DROP), fit("pretrain", "all-blocks")])
    two = [fit("pretrain", "ddp", DDP, DROP, *TWO), fit("pretrain", "fsdp2", FSDP2, DROP, *TWO)]
    two += [fit("pretrain", "stopped", FSDP2, DROP, *TWO, f"--trainer.max_steps={steps}") for steps in (2, 4)]
    run_all(folder, cache, two, num_ranks=2)
    return folder


def weights(run):
    (file,) = (run / "model" / "last").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_leave_out_what_one_does(runs, strategy):
    assert_same_folder(runs / strategy / "model" / "last", runs / "one" / "model" / "last")
    assert_same_metrics(runs / strategy, runs / "one")


def test_something_is_left_out(runs):
    every, some = weights(runs / "all-blocks"), weights(runs / "one")
    assert any(not torch.allclose(every[name], some[name], rtol=1e-4, atol=1e-5) for name in every)


def test_a_stopped_run_ends_as_a_straight_one_to_the_bit(runs):
    ours, theirs = weights(runs / "stopped"), weights(runs / "fsdp2")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
