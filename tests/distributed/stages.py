"""Every stage on a small network, and whether two runs of it are the same."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from tests import ppo_runs
from tests.command_line import CONFIG
from tests.config_files import adamw, config_of, part, samples_of
from tests.ppo_runs import REWARDS, TIMES


def config(module, data, file, network):
    backbone, constant = {"path": str(network)}, {"kind": "constant", "warmup": 0}
    teacher = {"teacher": backbone} if module == "Distillation" else {}
    return config_of(
        part(module, backbone=backbone, optimizer=adamw(5e-3), schedule=constant, **teacher),
        part(data, path=file, seq_len=64, batch_size=4, val_share=0.1),
        max_steps=4, val_check_interval=2, accumulate_grad_batches=2, callbacks=[samples_of(2)],
    )  # fmt: skip


LORA = ("--model.peft=peft.LoraConfig", "--model.peft.r=4", "--model.peft.target_modules=all-linear")
STAGES = {
    "pretrain": ("--config=pretrain.yaml", "--model.backbone.dropout=0", "--trainer.max_steps=4",
                 "--trainer.val_check_interval=2", "--model.schedule.kind=constant"),
    "muon": ("--config=pretrain.yaml", "--model.backbone.dropout=0", "--trainer.max_steps=4", "--config=optimizer/muon",
             "--trainer.val_check_interval=2", "--model.schedule.kind=constant"),
    "sft": ("--config=sft.yaml", *LORA),
    "distill": ("--config=distill.yaml", "--model.objective.labels_weight=0.5"),
    "cached": ("--config=distill.yaml", "--model.objective.labels_weight=0.5", "--model.teacher_logprobs=cached"),
    "written": ("--config=sft.yaml", "--model=Distillation", "--model.context=Be brief.", "--model.on_policy_share=0.5",
                "--model.sampling.max_new_tokens=8", *LORA),
    "reward": ("--config=reward.yaml",),
    "dpo": ("--config=dpo.yaml",),
    "kto": ("--config=dpo.yaml", "--model.objective.kind=kto", "--data.path=[preferences.jsonl,singles.jsonl]", *LORA),
    "ppo": ("--config=ppo.yaml", "--trainer.max_steps=2"),
}  # fmt: skip
TWO = ("--trainer.devices=2", "--data.batch_size=2")


def fit(stage, root, *args):
    return ("fit", *STAGES[stage], f"--trainer.default_root_dir={root}", *args)


def prepare(folder, texts, network):
    """Everything that the commands of `fit` read."""
    (folder / "texts.jsonl").write_text(texts)
    pairs = [{"prompt": f"What is {i} plus {i * i}?", "completion": f"A number, {i}.", "answer": i} for i in range(60)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    preferences = [{"prompt": f"{i} {'abcde'[i % 5] * 30}", "chosen": "yes", "rejected": "no"} for i in range(60)]
    (folder / "preferences.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in preferences))
    singles = [
        {"question": pair["prompt"], "answer": pair["chosen"], "label": i % 3 > 0} for i, pair in enumerate(preferences)
    ]
    (folder / "singles.jsonl").write_text("".join(json.dumps(single) + "\n" for single in singles[:41]))
    (folder / "my_rewards.py").write_text(REWARDS)
    (folder / "pretrain.yaml").write_text(CONFIG)
    (folder / "ppo.yaml").write_text(ppo_runs.config(network))
    for name, module, data, file in (
        ("sft", "SupervisedFinetuning", "InstructionDataModule", "prompts.jsonl"),
        ("distill", "Distillation", "TextDataModule", "texts.jsonl"),
        ("reward", "RewardModeling", "PreferenceDataModule", "preferences.jsonl"),
        ("dpo", "PreferenceOptimization", "PreferenceDataModule", "preferences.jsonl"),
    ):
        (folder / f"{name}.yaml").write_text(config(module, data, file, network))


def metrics(folder, most_steps):
    """By step what was logged, but for times and what every start says of its data."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    kept = [{n: float(v) for n, v in row.items() if v and not n.startswith((TIMES, "data/"))} for row in rows]
    return {row["step"]: row for row in kept if 0 < row["step"] <= most_steps}


def assert_same_metrics(folder, expected, most_steps=100, without=()):
    rows, wanted = metrics(folder, most_steps), metrics(expected, most_steps)
    assert rows.keys() == wanted.keys() and len(rows) >= 2
    for step, row in wanted.items():
        # What is nearly zero by cancellation differs in its last digits; AdamW's first steps divide noise by noise.
        found, row = ({n: v for n, v in each.items() if n not in without} for each in (rows[step], row))
        assert found == pytest.approx(row, rel=1e-3, abs=1e-4), step


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
