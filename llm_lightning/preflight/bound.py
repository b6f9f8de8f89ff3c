"""A quick bound on what a run takes: most are far below what there is, and need no closer look."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_lightning.models.attention import ATTENTION, attention_of
from llm_lightning.modules.base import LanguageModule
from llm_lightning.preflight.pretence import pretended

STATES = 4
"""Copies of each weight: itself, its gradient and two moments."""

PASSES = 4
"""Times that what a matrix reads and writes is held: before and after its norm or activation, and with its gradient."""


@dataclass(frozen=True)
class Most:
    """Bytes in float32 that no run of the usual architectures takes, whatever is sharded or recomputed.

    Args:
        step: of memory.
        weights: of all networks.
    """

    step: int
    weights: int


def most_of(module: LanguageModule, batch: Mapping[str, Any]) -> Most:
    """The bound, from the networks' shapes.

    Args:
        module: before its network is built.
        batch: a micro-batch.
    """
    probe = pretended(module)
    probe.configure_model()
    rows, length = batch["input_ids"].shape
    weights = {id(p): p for network in probe.networks for p in network.parameters()}.values()
    count = sum(p.numel() for p in weights)
    widths = sum(sum(p.shape[-2:]) * p.shape[:-2].numel() for p in weights if p.ndim > 1)
    dense = 0
    for network in probe.networks:
        config = network.config.get_text_config(decoder=True)
        if attention_of(network) != ATTENTION:
            dense += config.num_attention_heads * config.num_hidden_layers * length
    return Most(4 * (STATES * count + PASSES * rows * length * (widths + dense)), 4 * count)
