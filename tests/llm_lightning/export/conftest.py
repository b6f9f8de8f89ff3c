"""Tiny networks with a real tokenizer and a chat template, and exports of them."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from datamodules.encoding.tokenizer import train
from llm_lightning.export.proof.asking import SCRIPTS, Answers
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.models.tasks import LANGUAGE

SIZES = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama, untied, other heads": LlamaConfig(**SIZES, head_dim=32, tie_word_embeddings=False, rope_theta=5e5),
    "mistral": MistralConfig(**SIZES, sliding_window=None, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=128, tie_word_embeddings=False),
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def trained_tokenizer():
    texts = ["The quick brown fox jumps over the lazy dog; what is 1 plus 23? Größe, naïve, 我能吞下玻璃。"] * 9
    tokenizer = train(iter(texts), vocab_size=350)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save(folder, config, task=LANGUAGE, seed=0):
    torch.manual_seed(seed)
    tokenizer = trained_tokenizer()
    network = Backbone(config=config).build(tokenizer, task)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:  # biases of 0 and norms of 1 would hide a fault
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if task.head is not None and name.startswith(task.head):
                parameter.normal_()
    save_model_folder(network, tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """By the name in `CONFIGS` a folder, made when it is asked for."""
    made = {}

    def model(name):
        if name not in made:
            made[name] = save(tmp_path_factory.mktemp("model"), CONFIGS[name])
        return made[name]

    return model


@pytest.fixture
def ask_here(monkeypatch):
    """As `ask`, by the same script, in this process: a new one takes seconds to import the libraries."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def ask(script, questions, place, *, python=sys.executable):
        assert python == sys.executable
        place.mkdir()
        importlib.import_module(script).run(questions, place)
        logits = place / "logits.npy"
        said = json.loads((place / "answers.json").read_text())
        return Answers(said, np.load(logits) if logits.exists() else None)

    return ask
