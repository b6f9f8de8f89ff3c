"""The real command line in processes of its own, and the small network and the text that it runs on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.config_files import config_of, part, samples_of, saves_every

ROOT = Path(__file__).parents[1]

CONFIG = config_of(
    part(
        "CausalPretraining",
        backbone={
            "dropout": 0.1,
            "config": part(
                "transformers.LlamaConfig", hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
            ),
        },
        schedule={"warmup": 5},
    ),
    part("TextDataModule", path="texts.jsonl", vocab_size=500, seq_len=64, batch_size=4, val_share=0.1),
    max_steps=24, val_check_interval=8, accumulate_grad_batches=2, callbacks=[saves_every(3), samples_of(8)],
)  # fmt: skip


@pytest.fixture(scope="session")
def texts() -> str:
    """The docstrings of a few modules of Python's own library, as JSON lines."""
    import json

    from datamodules.corpora.python_docs import documents

    docs = [text for _, text in zip(range(60), documents(), strict=False)]
    return "".join(json.dumps({"text": text[:3000]}) + "\n" for text in docs)


@pytest.fixture(scope="session")
def network(tmp_path_factory) -> Path:
    """A model folder with a tokenizer: random weights, four layers, room for 128 tokens."""
    import torch
    from transformers import LlamaConfig

    from datamodules.encoding.tokenizer import train
    from llm_lightning.models.backbone import Backbone
    from llm_lightning.models.export import save_model_folder

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    tokenizer = train(iter(["What is 1 plus 2? It is a number, 3."] * 9), vocab_size=300)
    folder = tmp_path_factory.mktemp("network")
    save_model_folder(Backbone(config=config).build(tokenizer), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def folder(tmp_path, texts) -> Path:
    (tmp_path / "texts.jsonl").write_text(texts)
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def fresh_command(folder, cache):
    """As `command`, in a process that has imported nothing: for ranks, and where its environment has to be its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLM_LIGHTNING")} | {
        "PYTHONPATH": str(ROOT),
        "LLM_LIGHTNING_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }

    def start(*args: str, env: dict[str, str] | None = None) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "llm_lightning", *args],
            cwd=folder,
            env=environment | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture
def fresh_run(fresh_command):
    """As `run`, in a process that has imported nothing."""

    def finish(*args: str, env: dict[str, str] | None = None) -> tuple[int, str]:
        process = fresh_command(*args, env=env)
        output, _ = process.communicate(timeout=240)
        return process.returncode, output

    return finish
