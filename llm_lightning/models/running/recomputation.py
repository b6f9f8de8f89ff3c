"""What the backward pass finds kept, and what it computes again."""

import importlib
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from llm_lightning.errors import UserError

Recomputation = bool | Literal["selective", "offload"]

PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten._scaled_mm")
ATTENTION = (
    "aten._scaled_dot_product_flash_attention", "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_efficient_attention", "aten._scaled_dot_product_cudnn_attention",
    "torch_attn._varlen_attn", "llm_lightning.document_attention",
)  # fmt: skip


def recompute_activations(network: PreTrainedModel, how: Recomputation) -> None:
    """Let each layer compute activations anew in the backward pass.

    Args:
        network: before its layers are compiled.
        how: True for all of them. `selective` keeps what matrix products and attention gave, so that only what lies
            between them is computed twice (arXiv:2205.05198). `offload` keeps each layer's inputs in pinned memory of
            the host, and computes all the rest.

    Raises:
        UserError: `offload` without a device to move them away from.
    """
    if how == "offload" and not torch.accelerator.is_available():
        raise UserError(
            "model.backbone.activation_checkpointing=offload moves activations from a GPU to the host, and there is no "
            "GPU here: set it to true, or to selective."
        )
    options: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, dear_operators())
    network.activation_checkpointing_enable(options, **({"offload": True} if how == "offload" else {}))


def dear_operators() -> list[Any]:
    """Those whose results are kept: torch's, and ours on packed rows."""
    # Importing these registers their operators.
    importlib.import_module("torch.nn.attention.varlen")
    importlib.import_module("llm_lightning.models.attention.cpu")
    found = (name.split(".") for name in (*PRODUCTS, *ATTENTION))
    return [getattr(getattr(torch.ops, library), name).default for library, name in found]
