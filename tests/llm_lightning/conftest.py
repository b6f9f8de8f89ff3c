"""A tiny real Llama and packed batches for it."""

import pytest
import torch
from transformers import LlamaConfig

from llm_lightning.models.backbone import Backbone

VOCAB = 128


def tiny_config(**changes) -> LlamaConfig:
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    return LlamaConfig(**settings | changes)


def pack(documents: list[list[int]], seq_len: int) -> dict[str, torch.Tensor]:
    """One row holding `documents`, padded as one more, fully masked document."""
    padding = seq_len - sum(map(len, documents))
    rows = [*documents, *([[0] * padding] if padding else [])]
    labels = [[-100, *d[1:]] for d in documents] + ([[-100] * padding] if padding else [])
    return {
        "input_ids": torch.tensor([[t for d in rows for t in d]]),
        "labels": torch.tensor([[t for d in labels for t in d]]),
        "position_ids": torch.cat([torch.arange(len(d)) for d in rows])[None],
    }


def stack(*batches: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([b[name] for b in batches]) for name in batches[0]}


def random_documents(lengths: list[int], seed: int = 0) -> list[list[int]]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (n,), generator=g).tolist() for n in lengths]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Backbone(config=tiny_config()).build()
