"""A small network that the quantization tests train, and what they ask of the folders it becomes."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from callbacks import Quantization
from callbacks.quantization import SCHEMES, Calibration
from callbacks.quantization.layers import linear_layers
from callbacks.quantization.request import load_network
from tests.callbacks.tiny_llama import VOCABULARY, TinyData, TinyModule, tiny_tokenizer, tiny_trainer

ON_CPU = [name for name, scheme in SCHEMES.items() if scheme.runs_on(torch.device("cpu"))]
OPTIONS: dict[str, dict[str, Any]] = {name: {"iters": 4} for name in ("int4", "int3", "int2")}
TEMPLATES = {"default": "{{ messages }}", "tool_use": "{{ tools }}{{ messages }}"}
IDS = torch.arange(3, 67)[None]


def wide_network(**settings: Any) -> LlamaForCausalLM:
    """As narrow as all schemes can take."""
    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
    return LlamaForCausalLM(LlamaConfig(**config | settings))


class WideModule(TinyModule):
    """Around a wide network, the given one or a new one; saves its tokenizer too."""

    def __init__(self, network: Any = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.network = network

    def configure_model(self) -> None:
        if self.model is None:
            self.model = self.network or wide_network()

    def save_model(self, folder: Path) -> None:
        super().save_model(folder)
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = TEMPLATES
        tokenizer.save_pretrained(folder)


def needs(name: str) -> None:
    library = SCHEMES[name].library
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


def fit(root: Path, callback: Quantization, module: Any = None, *, num_rows: int = 4, **settings: Any) -> Any:
    """Learn the four rows that validate by heart, and quantize."""
    torch.manual_seed(0)
    module = module or WideModule()
    trainer = tiny_trainer(root, callbacks=[callback], **{"max_steps": 2} | settings)
    trainer.fit(module, TinyData(num_rows=num_rows))
    return module


def quantization(*names: str, **settings: Any) -> Quantization:
    options = {name: OPTIONS[name] for name in names if name in OPTIONS}
    return Quantization(list(names), options=options, num_batches=2, **{"calibration": Calibration(8)} | settings)


def effective_weights(folder: Path, original: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Of each quantized layer, (out, in): what it multiplies with, whatever holds that, and the original's weight."""
    network, weights = load_network(folder, torch.device("cpu")), {}
    for name, layer in linear_layers(original).items():
        if name != "lm_head":
            with torch.no_grad():
                weights[name] = (network.get_submodule(name)(torch.eye(layer.in_features)).T, layer.weight.detach())
    return weights
