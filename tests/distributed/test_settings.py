"""What a stage can be set to holds on two FSDP2 ranks too: each run is that of one process."""

import pytest

from tests.distributed.commands import run_all
from tests.distributed.stages import LORA, TWO, assert_same_metrics, fit, prepare

pytestmark = pytest.mark.slow

FSDP2 = "--trainer.strategy=fsdp2"
SETTINGS = {
    "ppo with lora": ("ppo", *LORA),
    "ppo with a critic of its own": ("ppo", "--model.critic.kind=network"),
    "grpo": ("ppo", "--model.advantages.kind=grpo"),
    "reward with lora": ("reward", *LORA),
    "bfloat16": ("pretrain", "--trainer.precision=bf16-mixed"),
    "recomputed activations": ("pretrain", "--model.backbone.activation_checkpointing=true"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, texts, network, cache):
    folder = tmp_path_factory.mktemp("settings")
    prepare(folder, texts, network)
    one, two = [], []
    for name, (stage, *args) in SETTINGS.items():
        one.append(fit(stage, f"one/{name}", *args))
        two.append(fit(stage, f"two/{name}", FSDP2, *TWO, *args))
    run_all(folder, cache, one)
    run_all(folder, cache, two, num_ranks=2)
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_two_ranks_are_one(runs, name):
    assert_same_metrics(runs / "two" / name, runs / "one" / name, most_steps=4)
