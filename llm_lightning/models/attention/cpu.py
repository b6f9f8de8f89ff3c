"""Attention on CPU: one causal flash call a document, as one operator."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llm_lightning.models.attention.documents import merge_rows

LONG_DOCUMENT = 512
"""Tokens; see `_is_for_onednn`."""

HALF = (torch.bfloat16, torch.float16)


# One operator for torch.compile: the number of documents differs from batch to batch and must not recompile the graph.
@torch.library.custom_op("llm_lightning::document_attention", mutates_args=(), device_types="cpu")
def cpu_attention(query: Tensor, key: Tensor, value: Tensor, spans: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention of each span of (B, heads, T, D); also the log-sum-exps (B, heads, T) for the backward pass."""
    out, lse = _empty_outputs(query)
    dtype = _fast_dtype(query.dtype)
    for span in merge_rows(spans, *query.shape[::2]):
        part = [span.of(x).to(dtype) for x in (query, key, value)]
        with _products_of(span.length):
            o, s = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*part, 0.0, True, scale=scale)
        span.write(out, o)
        span.write(lse, s)
    return out, lse


@torch.library.custom_op("llm_lightning::document_attention_backward", mutates_args=(), device_types="cpu")
def cpu_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, spans: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, from what `cpu_attention` put out."""
    grads = [_like_tokens_first(x) for x in (query, key, value)]
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    for span in merge_rows(spans, *query.shape[::2]):
        dtype = _fast_backward_dtype(query.dtype, span.length)
        part = [span.of(x).to(dtype) for x in (grad, query, key, value, out)]
        # What a shared prompt itself puts out is the first document's affair.
        part[0][:, :, : span.shared] = 0
        with _products_of(span.length):
            pieces = backward(*part, span.of(lse), 0.0, True, scale=scale)
        for whole, piece in zip(grads, pieces, strict=True):
            span.write(whole, piece)
            whole[span.rows, :, span.prompt] += piece[:, :, : span.shared]
    return grads[0], grads[1], grads[2]


def _fast_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the flash kernel is fast in: in half precision only where the CPU has tiles for it (AMX)."""
    return torch.float32 if dtype in HALF and not _has_tiles() else dtype


def _fast_backward_dtype(dtype: torch.dtype, num_tokens: int) -> torch.dtype:
    """The same of the backward kernel, which makes many small products: see `_is_for_onednn`."""
    return torch.float32 if dtype in HALF and not _is_for_onednn(num_tokens) else _fast_dtype(dtype)


@cache
def _has_tiles() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def _is_for_onednn(num_tokens: int) -> bool:
    """Whether oneDNN's products are faster for a document.

    oneDNN compiles and keeps a kernel for every shape, and documents come in every length, which costs several times
    the products themselves, and memory without end (benchmarks/attention.py). From 512 tokens on it is faster, though;
    such are the rows that one long document fills, all of one length.
    """
    return num_tokens >= LONG_DOCUMENT and num_tokens % LONG_DOCUMENT == 0


@contextmanager
def _products_of(num_tokens: int) -> Iterator[None]:
    """Take a document's float32 products from MKL where oneDNN is set for them and not faster."""
    precision = torch.get_float32_matmul_precision()
    if precision != "medium" or _is_for_onednn(num_tokens):
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _like_tokens_first(x: Tensor) -> Tensor:
    """(B, heads, T, D), laid out as (B, T, heads, D): what comes before and after attention reads it in that order."""
    B, heads, T, D = x.shape
    return x.new_empty(B, T, heads, D).transpose(1, 2)


def _empty_outputs(query: Tensor) -> tuple[Tensor, Tensor]:
    B, heads, T, _ = query.shape
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return _like_tokens_first(query), query.new_empty(B, heads, T, dtype=dtype)


@cpu_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, spans: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return _empty_outputs(query)


@cpu_attention_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, spans: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _like_tokens_first(query), _like_tokens_first(key), _like_tokens_first(value)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    query, key, value, spans, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, spans)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*cpu_attention_backward(grad, *ctx.saved_tensors, ctx.scale), None, None)


cpu_attention.register_autograd(_backward, setup_context=_setup_context)
