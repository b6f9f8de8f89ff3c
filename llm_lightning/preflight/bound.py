"""A quick bound on a step's memory: most runs are far below what there is, and need no closer look."""

from collections.abc import Mapping
from typing import Any

from llm_lightning.models.attention import ATTENTION, attention_of
from llm_lightning.modules.base import LanguageModule
from llm_lightning.preflight.pretence import pretended

STATES = 4
"""Copies of each weight: itself, its gradient and two moments."""

PASSES = 4
"""Times that what a matrix reads and writes is held: before and after its norm or activation, and with its gradient."""


def most_memory(module: LanguageModule, batch: Mapping[str, Any]) -> int:
    """Bytes in float32 that no step of the usual architectures takes, whatever is sharded or recomputed.

    Args:
        module: before its network is built.
        batch: a micro-batch.
    """
    probe = pretended(module)
    probe.configure_model()
    rows, length = batch["input_ids"].shape
    weights = {id(p): p for network in probe.networks for p in network.parameters()}.values()
    states = STATES * sum(p.numel() for p in weights)
    widths = sum(sum(p.shape[-2:]) * p.shape[:-2].numel() for p in weights if p.ndim > 1)
    dense = 0
    for network in probe.networks:
        config = network.config.get_text_config(decoder=True)
        if attention_of(network) != ATTENTION:
            dense += config.num_attention_heads * config.num_hidden_layers * length
    return 4 * (states + PASSES * rows * length * (widths + dense))
