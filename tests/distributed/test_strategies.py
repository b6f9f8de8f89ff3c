"""DDP and FSDP2 on two ranks train as one process does, in every stage, and go on from each other's checkpoints."""

import pytest
import torch.distributed.checkpoint as dcp

from llm_lightning.checkpoints.checkpoint_io import AtomicCheckpointIO
from llm_lightning.errors import UserError
from tests.distributed.commands import run_all
from tests.distributed.stages import STAGES, TWO, assert_same_folder, assert_same_metrics, fit, prepare

SHARED = ("--trainer.devices=2", "--trainer.strategy=llm_lightning.strategies.FSDP2Strategy",
          "--trainer.strategy.tensor_parallel_size=2")  # fmt: skip
FSDP2, DDP = "--trainer.strategy=fsdp2", "--trainer.strategy=ddp"
SIX = ("--trainer.max_steps=6",)


pytestmark = pytest.mark.slow  # many runs, most of them on two ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory, texts, network, cache):
    """The folder of all runs: `STAGE-one`, `STAGE-ddp`, `STAGE-fsdp2`, and the resumed ones."""
    folder = tmp_path_factory.mktemp("strategies")
    prepare(folder, texts, network)
    one = [fit(stage, f"{stage}-one") for stage in STAGES]
    one += [
        fit("pretrain", "parts-of-one", FSDP2),
        *(fit(stage, f"{stage}-long", *SIX) for stage in ("pretrain", "sft")),
    ]
    run_all(folder, cache, one)
    two = [fit(stage, f"{stage}-fsdp2", FSDP2, *TWO) for stage in STAGES]
    two += [
        fit(stage, f"{stage}-ddp", DDP, *TWO)
        for stage in ("muon", "sft", "distill", "cached", "written", "reward", "dpo", "kto")
    ]
    two += [fit("pretrain", root, FSDP2, *TWO, *SIX) for root in ("parts-of-one", "pretrain-one")]
    two += [fit("sft", "sft-fsdp2", FSDP2, *TWO, *SIX)]
    two += [fit(stage, f"{stage}-shared", *SHARED) for stage in ("pretrain", "muon")]
    run_all(folder, cache, two, num_ranks=2)
    run_all(folder, cache, [fit("pretrain", "pretrain-fsdp2", FSDP2, *SIX)])
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "pretrain-fsdp2",
        "pretrain-shared",
        "muon-fsdp2",
        "muon-shared",
        "muon-ddp",
        "sft-fsdp2",
        "distill-fsdp2",
        "distill-ddp",
        "cached-fsdp2",
        "cached-ddp",
        "written-fsdp2",
        "written-ddp",
        "reward-fsdp2",
        "ppo-fsdp2",
        "sft-ddp",
        "reward-ddp",
        "dpo-fsdp2",
        "dpo-ddp",
        "kto-fsdp2",
        "kto-ddp",
    ],
)
def test_two_ranks_are_one(runs, name):
    one = runs / f"{name.split('-')[0]}-one"
    assert_same_metrics(runs / name, one, most_steps=4)


@pytest.mark.parametrize("name", ["reward-fsdp2", "ppo-fsdp2", "sft-ddp", "reward-ddp", "dpo-fsdp2", "kto-ddp"])
def test_the_model_folder_is_the_same(runs, name):
    assert_same_folder(runs / name / "model" / "last", runs / f"{name.split('-')[0]}-one" / "model" / "last")


@pytest.mark.parametrize(
    "name",
    ["pretrain-fsdp2", "parts-of-one", "pretrain-one"],
    ids=["from two ranks to one", "from one rank to two", "from a file to parts"],
)
def test_another_number_of_ranks_goes_on(runs, name):
    assert_same_metrics(runs / name, runs / "pretrain-long")
    assert_same_folder(runs / name / "model" / "last", runs / "pretrain-long" / "model" / "last")


def test_an_adapter_in_parts_goes_on(runs):
    assert_same_metrics(runs / "sft-fsdp2", runs / "sft-long")
    assert_same_folder(runs / "sft-fsdp2" / "model" / "last", runs / "sft-long" / "model" / "last")


def test_a_checkpoint_in_parts_is_whole_and_holds_no_frozen_weight(runs):
    folder = runs / "sft-fsdp2" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step=4.ckpt", "step=6.ckpt"]
    assert {".metadata", "meta.pt"} < {path.name for path in (folder / "step=6.ckpt").iterdir()}
    saved = dcp.FileSystemReader(folder / "step=6.ckpt").read_metadata().state_dict_metadata
    weights = [name for name in saved if name.startswith("state_dict.")]
    assert weights and all(".lora_A." in name or ".lora_B." in name for name in weights)


def test_one_process_says_how_to_read_a_checkpoint_in_parts(runs):
    path = max((runs / "pretrain-fsdp2" / "checkpoints").iterdir())
    with pytest.raises(UserError, match=r"sharded checkpoint: add --config configs/trainer/fsdp\.yaml"):
        AtomicCheckpointIO().load_checkpoint(path)
