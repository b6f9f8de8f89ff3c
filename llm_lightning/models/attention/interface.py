"""Which attention runs, and its registration with transformers' attention interface."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llm_lightning.errors import UserError
from llm_lightning.models.attention.branches import Branches
from llm_lightning.models.attention.cpu import cpu_attention
from llm_lightning.models.attention.cuda import varlen_attention
from llm_lightning.models.attention.documents import Documents
from llm_lightning.models.attention.plain import plain_attention, span_attention, two_way_attention, window_mask

ATTENTION = "llm_lightning_documents"
PACKED = "llm_lightning_packed"
"""The same without a mask function: transformers' search for documents, by which it would make a mask, has each forward
pass of packed rows wait for the device."""


class Prefix(Protocol):
    """Keys and values that every document sees before its own; see `adapters/virtual_tokens.py`."""

    def attend(
        self, attention: Callable, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Tensor, None]:
        """As `document_attention`, which is `attention`."""
        ...


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: Documents | Branches | None = None,
    sliding_window: int | None = None,
    prefix: Prefix | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (B, heads, T, D), key and value (B, KV heads, T, D) to (B, T, heads, D).

    Without `documents` (generation, padded batches) it is transformers' own SDPA attention. A `prefix` is seen by every
    document, before its own tokens. Where the layer is not causal (an encoder's) a token sees all of its document.
    """
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    if not getattr(module, "is_causal", True) and softcap is None and sinks is None and prefix is None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if not isinstance(documents, Documents) or attention_mask is not None:
            return two_way_attention(query, key, value, scale, dropout, attention_mask, sliding_window), None
        return span_attention(query, key, value, documents.spans, scale, dropout, sliding_window, causal=False), None
    if documents is None or attention_mask is not None:
        T, window = query.shape[2], sliding_window
        if attention_mask is None and window is not None and window < T == key.shape[2]:
            attention_mask = window_mask(T, window, query.device)[None, None]  # transformers was told to make none
        if softcap is not None or sinks is not None:
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            return plain_attention(query, key, value, scale, dropout, attention_mask, softcap, sinks), None
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    if prefix is not None:
        options = {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window}
        return prefix.attend(document_attention, module, query, key, value, **kwargs | options)
    if kwargs.get("position_bias") is not None:
        raise UserError(
            f"{type(module).__name__} needs 'position_bias' in its attention, which {ATTENTION} does not have: set "
            "model.backbone.attention to `eager`."
        )
    if torch.is_autocast_enabled(query.device.type):
        # Rotary embeddings leave queries and keys in float32, beside values that autocast made.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(documents, Branches):
        return documents.attend(query, key, value, scale, sliding_window, softcap, sinks), None
    window = None if sliding_window is None or sliding_window >= documents.longest else sliding_window
    if softcap is not None or sinks is not None:
        return span_attention(query, key, value, documents.spans, scale, dropout, window, softcap, sinks), None
    is_even = query.shape[-1] == value.shape[-1]
    if query.device.type == "cpu" and dropout == 0.0 and window is None and is_even:
        return cpu_attention(query, key, value, documents.spans, scale)[0].transpose(1, 2), None
    if query.device.type == "cuda" and dropout == 0.0 and is_even and query.dtype in (torch.float16, torch.bfloat16):
        return varlen_attention(query, key, value, documents, scale, window), None
    return span_attention(query, key, value, documents.spans, scale, dropout, window), None


def document_mask(
    *, q_length: int, kv_length: int, attention_mask: Tensor | None = None, q_offset: Any = 0, **kwargs: Any
) -> Tensor | None:
    """transformers' mask function: none where attention is causal within documents, else SDPA's own mask."""
    from transformers.masking_utils import sdpa_mask

    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, q_offset=q_offset, **kwargs)


def register_attention() -> None:
    """Make `ATTENTION` known to transformers; repeating it does no harm."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, document_attention)
    AttentionInterface.register(PACKED, document_attention)
    AttentionMaskInterface.register(ATTENTION, document_mask)
