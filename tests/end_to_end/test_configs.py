"""Every file in configs/ runs, on a small network and small data."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch.distributed as dist

from llm_lightning.__main__ import main

CONFIGS = Path(__file__).parents[2] / "configs"
TEXTS = ["--data.path=texts.jsonl", "--data.vocab_size=300", "--data.seq_len=64", "--data.batch_size=1"]
PAIRS = ["--model.backbone.path=network", "--data.path=pairs.jsonl", "--data.seq_len=64", "--data.batch_size=1"]
PREFERENCES = [*PAIRS[:1], "--data.path=preferences.jsonl", *PAIRS[2:]]
PROMPTS = ["--model.backbone.path=network", "--data.path=pairs.jsonl", "--data.max_prompt_tokens=64",
           "--data.batch_size=4", "--model.sampling.max_new_tokens=8"]  # fmt: skip
RULE = "--model.rewards={length: {function: {class_path: llm_lightning.rewards.Length, init_args: {target: 3}}}}"
STAGES = {
    "pretrain.yaml": [*TEXTS, "--model.backbone.config.num_hidden_layers=1"],
    "quickstart/pretrain.yaml": TEXTS,
    "prune.yaml": [
        "--model.backbone.path=network",
        "--data.path=texts.jsonl",
        "--data.seq_len=64",
        "--data.batch_size=1",
    ],
    "sft.yaml": PAIRS,
    "reward.yaml": PREFERENCES,
    "quickstart/sft.yaml": PAIRS,
    "quickstart/reward.yaml": PREFERENCES,
    "quickstart/compress.yaml": PAIRS,
    "compress.yaml": PAIRS,
    "quantize.yaml": ["--model.backbone.path=network", *TEXTS[:1], *TEXTS[2:]],
    "ppo.yaml": [*PROMPTS, RULE],
    "grpo.yaml": [*PROMPTS, RULE],
    "quickstart/ppo.yaml": PROMPTS,
}
NEEDS = {"peft/qlora.yaml": "bitsandbytes"} | dict.fromkeys(
    ["compress.yaml", "quickstart/compress.yaml", "quantize.yaml"], "torchao"
)
OVERLAYS = {"callbacks": "pretrain.yaml", "logger": "pretrain.yaml", "peft": "sft.yaml", "trainer": "sft.yaml"}
OTHER_MACHINES = [f"trainer/{name}.yaml" for name in ("deepspeed_zero2", "deepspeed_zero3_offload", "tpu", "tpu_xla")]
OTHER_MACHINES += ["trainer/tensor_parallel.yaml"]  # two devices: tests/distributed
EVERY_FILE = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))


@pytest.fixture
def small(tmp_path, cache, network, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(cache))
    monkeypatch.setenv("WANDB_MODE", "offline")
    pairs = [{"prompt": f"What is {i}?", "completion": f"A number, {i}."} for i in range(40)]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    preferences = [{"prompt": f"{i} {'abcde'[i % 5] * 30}", "chosen": "yes", "rejected": "no"} for i in range(40)]
    Path("preferences.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in preferences))
    Path("texts.jsonl").write_text("".join(json.dumps({"text": str(pair)}) + "\n" for pair in pairs))
    Path("network").symlink_to(network)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("name", EVERY_FILE)
def test_it_runs(small, capfd, name):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    stage = name if name in STAGES else OVERLAYS[name.split("/")[0]]
    files = dict.fromkeys([stage, name])
    args = ["fit", *(f"--config={CONFIGS / file}" for file in files), *STAGES[stage]]
    if name in OTHER_MACHINES:
        assert main([*args, "--print_config"]) == 0
        return
    code = main([*args, "--trainer.fast_dev_run=2", "--trainer.accelerator=cpu", "--trainer.default_root_dir=run"])
    assert code == 0, capfd.readouterr().err
