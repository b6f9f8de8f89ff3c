"""Two replicas of two ranks each train as one process does, and go on as plain FSDP2."""

import pytest

from tests.distributed.commands import run_all
from tests.distributed.stages import TWO, assert_same_folder, assert_same_metrics, fit, prepare

FSDP2 = "llm_lightning.strategies.FSDP2Strategy"
HYBRID = (f"--trainer.strategy={FSDP2}", "--trainer.strategy.replicas=2")
FOUR = ("--trainer.devices=4", "--data.batch_size=1")
STAGES = ("pretrain", "muon", "sft", "dpo", "ppo")
SIX = ("--trainer.max_steps=6",)

pytestmark = pytest.mark.slow  # four ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory, texts, network, cache):
    folder = tmp_path_factory.mktemp("hybrid")
    prepare(folder, texts, network)
    run_all(folder, cache, [*(fit(stage, f"{stage}-one") for stage in STAGES), fit("pretrain", "pretrain-long", *SIX)])
    run_all(folder, cache, [fit(stage, f"{stage}-hybrid", *HYBRID, *FOUR) for stage in STAGES], num_ranks=4)
    goes_on = ("--trainer.strategy=fsdp2", *TWO, *SIX)
    run_all(folder, cache, [fit("pretrain", "pretrain-hybrid", *goes_on)], num_ranks=2)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_four_ranks_are_one(runs, stage):
    assert_same_metrics(runs / f"{stage}-hybrid", runs / f"{stage}-one", most_steps=4)


def test_other_ranks_go_on(runs):
    assert_same_metrics(runs / "pretrain-hybrid", runs / "pretrain-long")
    assert_same_folder(runs / "pretrain-hybrid" / "model" / "last", runs / "pretrain-long" / "model" / "last")
