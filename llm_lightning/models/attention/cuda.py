"""Attention on CUDA: one variable-length flash call for all documents of a batch."""

import inspect
from typing import Any

from torch import Tensor

from llm_lightning.models.attention.documents import Documents


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, documents: Documents, scale: float, window: int | None
) -> Tensor:
    """One flash call for all documents of the batch, on CUDA in half precision."""
    from torch.nn.attention.varlen import varlen_attn

    B, heads, T, D = query.shape
    q, k, v = (x.transpose(1, 2).reshape(B * T, -1, D) for x in (query, key, value))
    options: dict[str, Any] = {"scale": scale, "window_size": (-1 if window is None else window - 1, 0)}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    else:  # torch 2.11
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    if documents.source is not None:
        q, k, v = (x.index_select(0, documents.source) for x in (q, k, v))
    ends, longest = documents.cu_seqlens, documents.longest
    out = varlen_attn(q, k, v, ends, ends, longest, longest, **options)
    assert isinstance(out, Tensor)  # a tuple only where log-sum-exps are asked for
    if documents.kept is not None:
        out = out.index_select(0, documents.kept)
    return out.view(B, T, heads, D)
