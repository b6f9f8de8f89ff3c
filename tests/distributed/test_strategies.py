"""DDP and FSDP2 on two ranks train as one process does, in every stage, and go on from each other's checkpoints."""

import csv
import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from llm_lightning.checkpointing import AtomicCheckpointIO
from llm_lightning.errors import UserError
from tests.command_line import CONFIG
from tests.distributed.commands import run_all
from tests.ppo_runs import CONFIG as PPO
from tests.ppo_runs import REWARDS, TIMES

STAGE = """
model:
  class_path: {module}
  init_args:
    backbone: {{path: {network}}}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 5.0e-3}}}}
    schedule: {{kind: constant, warmup: 0}}
data:
  class_path: {data}
  init_args: {{path: {file}, seq_len: 64, batch_size: 4, val_share: 0.1}}
trainer:
  accelerator: cpu
  devices: 1
  precision: 32-true
  max_steps: 4
  val_check_interval: 4
  log_every_n_steps: 1
  accumulate_grad_batches: 2
  callbacks:
    - {{class_path: Samples, init_args: {{max_new_tokens: 2}}}}
"""
LORA = ("--model.peft=peft.LoraConfig", "--model.peft.r=4", "--model.peft.target_modules=all-linear")
STAGES = {
    "pretrain": ("--config=pretrain.yaml", "--model.backbone.dropout=0", "--trainer.max_steps=4",
                 "--trainer.val_check_interval=4", "--model.schedule.kind=constant"),
    "sft": ("--config=sft.yaml", *LORA),
    "reward": ("--config=reward.yaml",),
    "ppo": ("--config=ppo.yaml", "--trainer.max_steps=2"),
}  # fmt: skip
TWO = ("--trainer.devices=2", "--data.batch_size=2")
SHARED = ("--trainer.devices=2", "--trainer.strategy=llm_lightning.strategies.FSDP2Strategy",
          "--trainer.strategy.tensor_parallel_size=2")  # fmt: skip
FSDP2, DDP = "--trainer.strategy=fsdp2", "--trainer.strategy=ddp"
SIX = ("--trainer.max_steps=6",)


def fit(stage, root, *args):
    return ("fit", *STAGES[stage], f"--trainer.default_root_dir={root}", *args)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, texts, network, cache):
    """The folder of all runs: `STAGE-one`, `STAGE-ddp`, `STAGE-fsdp2`, and the resumed ones."""
    folder = tmp_path_factory.mktemp("strategies")
    (folder / "texts.jsonl").write_text(texts)
    pairs = [{"prompt": f"What is {i} plus {i * i}?", "completion": f"A number, {i}.", "answer": i} for i in range(60)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    preferences = [{"prompt": f"{i} {'abcde'[i % 5] * 30}", "chosen": "yes", "rejected": "no"} for i in range(60)]
    (folder / "preferences.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in preferences))
    (folder / "my_rewards.py").write_text(REWARDS)
    (folder / "pretrain.yaml").write_text(CONFIG)
    (folder / "ppo.yaml").write_text(PPO.replace("NETWORK", str(network)))
    for name, module, data, file in (
        ("sft", "SupervisedFinetuning", "InstructionDataModule", "prompts.jsonl"),
        ("reward", "RewardModeling", "PreferenceDataModule", "preferences.jsonl"),
    ):
        (folder / f"{name}.yaml").write_text(STAGE.format(module=module, data=data, file=file, network=network))
    one = [fit(stage, f"{stage}-one") for stage in STAGES]
    one += [
        fit("pretrain", "parts-of-one", FSDP2),
        *(fit(stage, f"{stage}-long", *SIX) for stage in ("pretrain", "sft")),
    ]
    run_all(folder, cache, one)
    two = [fit(stage, f"{stage}-fsdp2", FSDP2, *TWO) for stage in STAGES]
    two += [fit(stage, f"{stage}-ddp", DDP, *TWO) for stage in ("sft", "reward")]
    two += [fit("pretrain", root, FSDP2, *TWO, *SIX) for root in ("parts-of-one", "pretrain-one")]
    two += [fit("sft", "sft-fsdp2", FSDP2, *TWO, *SIX)]
    two += [fit("pretrain", "pretrain-shared", *SHARED)]
    run_all(folder, cache, two, num_ranks=2)
    run_all(folder, cache, [fit("pretrain", "pretrain-fsdp2", FSDP2, *SIX)])
    return folder


def metrics(folder, most_steps):
    """By step what was logged, but for times and what every start says of its data."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    kept = [{n: float(v) for n, v in row.items() if v and not n.startswith((*TIMES, "data/"))} for row in rows]
    return {row["step"]: row for row in kept if row["step"] <= most_steps}


def assert_same_metrics(folder, expected, most_steps=100):
    rows, wanted = metrics(folder, most_steps), metrics(expected, most_steps)
    assert rows.keys() == wanted.keys() and len(rows) >= 2
    for step, row in wanted.items():
        # What is nearly zero by cancellation differs in its last digits; AdamW's first steps divide noise by noise.
        assert rows[step] == pytest.approx(row, rel=1e-3, abs=1e-4), step


def assert_same_folder(folder, expected):
    assert {path.name for path in folder.iterdir()} == {path.name for path in expected.iterdir()}
    for path in expected.iterdir():
        other = folder / path.name
        if path.suffix == ".safetensors":
            weights, wanted = load_file(other), load_file(path)
            assert weights.keys() == wanted.keys()
            for name, weight in wanted.items():
                torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-3)
        elif path.name == "config.json":
            said, wanted = json.loads(other.read_text()), json.loads(path.read_text())
            normalization = said.pop("reward_normalization", {}), wanted.pop("reward_normalization", {})
            assert said == wanted and normalization[0] == pytest.approx(normalization[1], abs=1e-3)
        elif path.name == "adapter_config.json":  # its list of modules has no order
            assert sorted(other.read_text()) == sorted(path.read_text())
        else:
            assert other.read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    "name", ["pretrain-fsdp2", "pretrain-shared", "sft-fsdp2", "reward-fsdp2", "ppo-fsdp2", "sft-ddp", "reward-ddp"]
)
def test_two_ranks_are_one(runs, name):
    one = runs / f"{name.split('-')[0]}-one"
    assert_same_metrics(runs / name, one, most_steps=4)


@pytest.mark.parametrize("name", ["reward-fsdp2", "ppo-fsdp2", "sft-ddp", "reward-ddp"])
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
    with pytest.raises(UserError, match=r"checkpoint in parts: add --config configs/trainer/fsdp\.yaml"):
        AtomicCheckpointIO().load_checkpoint(path)
