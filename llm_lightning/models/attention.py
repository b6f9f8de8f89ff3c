"""Causal attention over packed rows that does no work across documents, and needs no padding and no dense mask.

A row of a packed batch holds several documents one after the other; a token may attend to its own document alone. A
dense (T, T) mask computes every pair and throws most away. Here each document is one causal flash call on CPU, and the
whole batch is one variable-length call on CUDA. The function is registered with transformers' attention interface
under `ATTENTION`, so that every architecture that goes through the interface has it.

The documents of a batch are found once, on the CPU, before the batch goes to its device (`Documents.of`), and travel
through the network's keyword arguments; the network never waits for the device to learn where a document ends.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

from llm_lightning.errors import UserError

ATTENTION = "llm_lightning_documents"

LONG_DOCUMENT = 512
"""Tokens; see `_products_of`."""


class Prefix(Protocol):
    """Keys and values that every document sees before its own; see `adapters/virtual_tokens.py`."""

    def attend(
        self, attention: Callable, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Tensor, None]:
        """As `document_attention`, which is `attention`."""
        ...


@dataclass(frozen=True)
class Documents:
    """Where the documents of a packed batch lie.

    A document may begin with a prompt that stands only once in its row, in front of another document: two answers to
    one question then share the question, and each sees it as its own beginning.

    Args:
        spans: (N, 5) int64 on the CPU: row, start, end of each document, and start and end of the prompt that it
            shares with an earlier document of its row, where it has one (else both are 0).
        cu_seqlens: (N + 1,) int32 on the batch's device: ends of the documents, shared prompts included, one after the
            other.
        longest: tokens of the longest document, its shared prompt included.
        source: (K,) int64 on the batch's device, which tokens of the flattened (B * T) batch these K are; None where
            they are the batch itself, since no prompt is shared.
        kept: (B * T,) int64 on the batch's device, where the batch's tokens are among those of `source`.
    """

    spans: Tensor
    cu_seqlens: Tensor
    longest: int
    source: Tensor | None = None
    kept: Tensor | None = None

    @classmethod
    def of(cls, position_ids: Tensor) -> "Documents":
        """From (B, T) positions that start at 0 with each document (the first of a row need not)."""
        num_rows, num_tokens = position_ids.shape
        is_start = position_ids == 0
        is_start[:, 0] = True
        row, start = is_start.nonzero(as_tuple=True)
        flat = row * num_tokens + start
        lengths = torch.cat([flat, flat.new_tensor([num_rows * num_tokens])]).diff()
        none = torch.zeros_like(row)
        return cls.of_spans(torch.stack([row, start, start + lengths, none, none], 1), num_tokens)

    @classmethod
    def of_spans(cls, spans: Tensor, num_tokens: int) -> "Documents":
        """From the spans of a batch, in order and without gaps, whose rows have `num_tokens` tokens."""
        # Their number differs from batch to batch: a compiled graph must not be made for each.
        torch._dynamo.maybe_mark_dynamic(spans, 0)
        row, start, end, prompt_start, prompt_end = spans.unbind(1)
        shared, own = prompt_end - prompt_start, end - start
        lengths = shared + own
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0))
        documents = cls(spans, cu_seqlens.int(), int(lengths.max()))
        if not shared.any():
            return documents
        document = torch.arange(len(spans)).repeat_interleave(lengths)
        within = torch.arange(len(document)) - cu_seqlens[document]
        is_own = within >= shared[document]
        first = torch.where(is_own, (start - shared)[document], prompt_start[document])
        source = row[document] * num_tokens + first + within
        return replace(documents, source=source, kept=is_own.nonzero().squeeze(1))

    def to(self, device: torch.device) -> "Documents":
        """On the batch's device, without waiting for it; the spans stay on the CPU."""
        names = ("cu_seqlens", "source", "kept")
        moved: Any = {
            name: None if (x := getattr(self, name)) is None else x.to(device, non_blocking=True) for name in names
        }
        return replace(self, **moved)


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: Documents | None = None,
    sliding_window: int | None = None,
    prefix: Prefix | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (B, heads, T, D), key and value (B, KV heads, T, D) to (B, T, heads, D).

    Without `documents` (generation, padded batches) it is transformers' own SDPA attention. A `prefix` is seen by every
    document, before its own tokens.
    """
    softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    if documents is None or attention_mask is not None:
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
    window = None if sliding_window is None or sliding_window >= documents.longest else sliding_window
    if softcap is not None or sinks is not None:
        return _span_attention(query, key, value, documents.spans, scale, dropout, window, softcap, sinks), None
    is_even = query.shape[-1] == value.shape[-1]
    if query.device.type == "cpu" and dropout == 0.0 and window is None and is_even:
        return _cpu_attention(query, key, value, documents.spans, scale)[0].transpose(1, 2), None
    if query.device.type == "cuda" and dropout == 0.0 and is_even and query.dtype in (torch.float16, torch.bfloat16):
        return _varlen_attention(query, key, value, documents, scale, window), None
    return _span_attention(query, key, value, documents.spans, scale, dropout, window), None


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
    AttentionMaskInterface.register(ATTENTION, document_mask)


# One operator for torch.compile: the number of documents differs from batch to batch and must not recompile the graph.
@torch.library.custom_op("llm_lightning::document_attention", mutates_args=(), device_types="cpu")
def _cpu_attention(query: Tensor, key: Tensor, value: Tensor, spans: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention of each span of (B, heads, T, D); also the log-sum-exps (B, heads, T) for the backward pass."""
    out, lse = _empty_outputs(query)
    dtype = _fast_dtype(query.dtype)
    for span in _merge_rows(spans, *query.shape[::2]):
        part = [span.of(x).to(dtype) for x in (query, key, value)]
        with _products_of(span.length):
            o, s = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*part, 0.0, True, scale=scale)
        span.write(out, o)
        span.write(lse, s)
    return out, lse


@torch.library.custom_op("llm_lightning::document_attention_backward", mutates_args=(), device_types="cpu")
def _cpu_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, spans: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    grads = [_like_tokens_first(x) for x in (query, key, value)]
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    dtype = _fast_dtype(query.dtype)
    for span in _merge_rows(spans, *query.shape[::2]):
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
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) and not _has_tiles() else dtype


@cache
def _has_tiles() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


@contextmanager
def _products_of(num_tokens: int) -> Iterator[None]:
    """Take the float32 products of a short document, or one of an odd length, from MKL where oneDNN is set for them.

    oneDNN compiles and keeps a kernel for every shape, and documents come in every length, which costs several times
    the products themselves, and memory without end (benchmarks/attention.py). From 512 tokens on it is faster, though;
    such are the rows that one long document fills, all of one length.
    """
    precision = torch.get_float32_matmul_precision()
    if precision != "medium" or (num_tokens >= LONG_DOCUMENT and num_tokens % LONG_DOCUMENT == 0):
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


class _Span(NamedTuple):
    """Where a document lies in (B, heads, T, ...), with the prompt that it shares."""

    rows: slice
    own: slice
    prompt: slice

    @property
    def shared(self) -> int:
        return self.prompt.stop - self.prompt.start

    @property
    def length(self) -> int:
        return self.own.stop - self.own.start + self.shared

    def of(self, x: Tensor) -> Tensor:
        """The whole document, shared prompt first."""
        own = x[self.rows, :, self.own]
        return torch.cat([x[self.rows, :, self.prompt], own], 2) if self.shared else own

    def write(self, x: Tensor, document: Tensor) -> None:
        """Put the document's own tokens into their place."""
        x[self.rows, :, self.own] = document[:, :, self.shared :]


def _merge_rows(spans: Tensor, num_rows: int, num_tokens: int) -> list[_Span]:
    """The documents; rows that are one document each go in one call."""
    if len(spans) == num_rows:
        return [_Span(slice(None), slice(0, num_tokens), slice(0, 0))]
    return [
        _Span(slice(row, row + 1), slice(start, end), slice(first, last))
        for row, start, end, first, last in spans.tolist()
    ]


def _like_tokens_first(x: Tensor) -> Tensor:
    """(B, heads, T, D), laid out as (B, T, heads, D): what comes before and after attention reads it in that order."""
    B, heads, T, D = x.shape
    return x.new_empty(B, T, heads, D).transpose(1, 2)


def _empty_outputs(query: Tensor) -> tuple[Tensor, Tensor]:
    B, heads, T, _ = query.shape
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return _like_tokens_first(query), query.new_empty(B, heads, T, dtype=dtype)


@_cpu_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, spans: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return _empty_outputs(query)


@_cpu_attention_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, spans: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _like_tokens_first(query), _like_tokens_first(key), _like_tokens_first(value)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    query, key, value, spans, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, spans)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*_cpu_attention_backward(grad, *ctx.saved_tensors, ctx.scale), None, None)


_cpu_attention.register_autograd(_backward, setup_context=_setup_context)


def _varlen_attention(
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


def _span_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Tensor,
    scale: float,
    dropout: float,
    window: int | None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """SDPA a document: any device, precision, dropout and window; with a cap or sinks by plain products."""
    outputs = []
    for span in _merge_rows(spans, -1, 0):
        q, k, v = (span.of(x) for x in (query, key, value))
        mask = None
        if window is not None and window < span.length:
            ones = torch.ones(span.length, span.length, dtype=torch.bool, device=query.device)
            mask = ones.tril() & ~ones.tril(-window)
        if softcap is not None or sinks is not None:
            out = plain_attention(q, k, v, scale, dropout, mask, softcap, sinks).transpose(1, 2)
        else:
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale, enable_gqa=True
            )
        outputs.append(out.squeeze(0)[:, span.shared :])
    B, heads, T, _D = query.shape
    return torch.cat(outputs, dim=1).view(heads, B, T, value.shape[-1]).permute(1, 2, 0, 3).contiguous()


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    dropout: float,
    mask: Tensor | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """(B, heads, T, D) to (B, T, heads, D), with what fused kernels do not have; it holds all pairs of tokens.

    Args:
        mask: bool, true where a token may look, or added to the scores; None: causal.
        softcap: c in c * tanh(scores / c), Gemma 2's.
        sinks: (heads,) scores of a place that all tokens see and that holds nothing, gpt-oss's.
    """
    B, heads, T, D = query.shape
    kv_heads, S = key.shape[1:3]
    grouped = query.reshape(B, kv_heads, -1, T, D) * scale
    scores = (grouped @ key[:, :, None].transpose(3, 4)).reshape(B, heads, T, S)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=query.device).tril(S - T)
    # Not -inf: a row of padding that sees nothing would be NaN.
    least = torch.finfo(scores.dtype).min
    scores = scores.masked_fill(~mask, least) if mask.dtype == torch.bool else scores + mask
    weights = softmax_with_sinks(scores, sinks).to(value.dtype)
    weights = F.dropout(weights, dropout) if dropout else weights
    out = weights.reshape(B, kv_heads, -1, T, S) @ value[:, :, None]
    return out.reshape(B, heads, T, -1).transpose(1, 2).contiguous()


def softmax_with_sinks(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """(B, heads, T, S) to float32 weights of the same shape, which add up to less than 1 where there are sinks."""
    scores = scores.float()
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, column], -1).softmax(-1)[..., :-1]
