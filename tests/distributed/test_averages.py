"""Averages of weights on two ranks: those of one process, and after a stop the same to the bit."""

import signal

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.commands import run_all
from tests.distributed.stages import TWO, assert_same_folder, assert_same_metrics, fit, prepare

EMA = "--trainer.callbacks+={class_path: EMA, init_args: {decay: 0.9}}"
SWA = "--trainer.callbacks+={class_path: SWA, init_args: {start: 2, every_n_steps: 1}}"
FSDP2, DDP = "--trainer.strategy=fsdp2", "--trainer.strategy=ddp"
CONSTANT = ("--model.schedule.kind=constant", "--model.schedule.warmup=0")
STOPPED, WHOLE = "--trainer.max_steps=4", "--trainer.max_steps=6"

pytestmark = pytest.mark.slow  # many runs, most of them on two ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory, texts, network, cache):
    """The folder of all runs: those on one rank, on two, straight ones and stopped ones that went on."""
    folder = tmp_path_factory.mktemp("averages")
    prepare(folder, texts, network)
    one = [fit(stage, f"{stage}-one", EMA, WHOLE) for stage in ("pretrain", "sft")]
    one += [fit("pretrain", "from-file", EMA, STOPPED)]
    run_all(folder, cache, one)
    two = [
        fit(stage, f"{stage}-{name}-straight", strategy, average, *TWO, WHOLE)
        for name, strategy, average in (("fsdp2", FSDP2, EMA), ("ddp", DDP, EMA), ("swa", FSDP2, SWA))
        for stage in ("pretrain", "sft")
    ]
    two += [
        fit(stage, f"{stage}-{name}", strategy, average, *TWO, steps)
        for name, strategy, average in (("fsdp2", FSDP2, EMA), ("ddp", DDP, EMA), ("swa", FSDP2, SWA))
        for stage in ("pretrain", "sft")
        for steps in (STOPPED, WHOLE)
    ]
    two += [fit("ppo", "ppo-fsdp2-straight", FSDP2, EMA, *TWO, *CONSTANT)]
    two += [fit("ppo", "ppo-fsdp2", FSDP2, EMA, *TWO, *CONSTANT, f"--trainer.max_steps={steps}") for steps in (1, 2)]
    two += [fit("pretrain", "from-file", FSDP2, EMA, *TWO, WHOLE), fit("pretrain", "to-one", FSDP2, EMA, *TWO, STOPPED)]
    for commands in (two[:9], two[9:18], two[18:]):  # each has its own limit of time
        run_all(folder, cache, commands, num_ranks=2)
    run_all(folder, cache, [fit("pretrain", "to-one", FSDP2, EMA, WHOLE)])
    return folder


def weights(run, name="average"):
    (file,) = (run / "model" / name).glob("*.safetensors")
    return load_file(file)


STARTED_AGAIN = [f"{stage}-{name}" for stage in ("pretrain", "sft") for name in ("fsdp2", "ddp", "swa")]


@pytest.mark.parametrize("name", [*STARTED_AGAIN, "ppo-fsdp2"])
def test_a_stopped_run_has_the_average_of_a_straight_one_to_the_bit(runs, name):
    ours, theirs = (weights(runs / run) for run in (name, f"{name}-straight"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    last = weights(runs / name, "last")
    assert any(not torch.equal(ours[key], last[key]) for key in last)


@pytest.mark.parametrize("name", ["pretrain-fsdp2", "pretrain-ddp", "sft-fsdp2", "sft-ddp"])
def test_two_ranks_average_what_one_does(runs, name):
    one = runs / f"{name.split('-')[0]}-one"
    assert_same_folder(runs / name / "model" / "average", one / "model" / "average")
    assert_same_metrics(runs / name, one)


@pytest.mark.parametrize("name", ["from-file", "to-one"])
def test_an_average_goes_on_in_other_parts(runs, name):
    assert_same_folder(runs / name / "model" / "average", runs / "pretrain-one" / "model" / "average")
    assert_same_metrics(runs / name, runs / "pretrain-one")


def test_a_sharded_run_that_is_killed_in_a_validation_goes_on_to_the_same_average(
    runs, fresh_run, folder, network, texts
):
    prepare(folder, texts, network)
    args = fit("pretrain", "run", FSDP2, EMA, *TWO, WHOLE, "--trainer.callbacks+=RunCheckpoint",
               "--trainer.callbacks.every_n_steps=1")  # fmt: skip
    place = "{name: SIGKILL, step: 4, in_validation: true}"
    code, output = fresh_run(*args, f"--trainer.callbacks+={{class_path: tests.signals.SignalAt, init_args: {place}}}")
    assert code == -signal.SIGKILL, output
    code, output = fresh_run(*args)
    assert code == 0 and "step=3.ckpt" in output, output
    ours, theirs = weights(folder / "run"), weights(runs / "pretrain-fsdp2-straight")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
