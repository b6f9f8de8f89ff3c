"""DeepSpeed's ZeRO on two CPU ranks trains as one process does; needs deepspeed, which the other tests do not."""

import pytest

from tests.distributed.commands import run_all
from tests.distributed.stages import TWO, assert_same_folder, assert_same_metrics, fit, prepare
from tests.end_to_end.test_configs import CONFIGS

pytest.importorskip("deepspeed", reason="deepspeed is not installed")

ONCE = "--trainer.accumulate_grad_batches=1"
ZERO2, ZERO3 = (
    (
        f"--config={CONFIGS}/trainer/deepspeed_{name}.yaml",
        "--trainer.accelerator=cpu",
        ONCE,
        "--trainer.strategy.trust_checkpoints=true",
    )
    for name in ("zero2", "zero3_offload")
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, texts, network, cache):
    folder = tmp_path_factory.mktemp("deepspeed")
    prepare(folder, texts, network)
    full = ("--model.peft=null",)
    one = [fit("sft", "sft-one", ONCE), fit("reward", "reward-one", ONCE), fit("sft", "full-one", ONCE, *full)]
    run_all(folder, cache, one)
    two = [
        fit("sft", "sft-zero2", *ZERO2, *TWO, "--trainer.max_steps=2"),
        fit("sft", "sft-zero2", *ZERO2, *TWO),
        fit("reward", "reward-zero3", *ZERO3, *TWO, "--trainer.max_steps=2"),
        fit("reward", "reward-zero3", *ZERO3, *TWO),
        fit("sft", "full-zero3", *ZERO3, *TWO, *full),
    ]
    for command in two:  # in processes of their own: DeepSpeed keeps what it was told
        run_all(folder, cache, [command], num_ranks=2, env={"DS_ACCELERATOR": "cpu"})
        went_on = "Going on from" in (folder / "output-0.txt").read_text()
        assert went_on == (two.index(command) in (1, 3))
    return folder


@pytest.mark.parametrize("name", ["sft-zero2", "reward-zero3", "full-zero3"])
def test_two_ranks_are_one(runs, name):
    one = runs / f"{name.split('-')[0]}-one"
    assert_same_metrics(runs / name, one, without={"train/grad_norm"})  # of the step before: the engine's
    assert_same_folder(runs / name / "model" / "last", one / "model" / "last")


def test_an_adapter_under_zero3_is_refused(runs, cache):
    with pytest.raises(AssertionError, match="cannot start under ZeRO 3"):
        run_all(runs, cache, [fit("sft", "refused", *ZERO3)], env={"DS_ACCELERATOR": "cpu"})
