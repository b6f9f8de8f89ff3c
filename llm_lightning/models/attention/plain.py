"""Attention by torch's own products, for what fused kernels do not have: windows, dropout, caps, sinks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_lightning.models.attention.documents import merge_rows


def span_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Tensor,
    scale: float,
    dropout: float,
    window: int | None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    causal: bool = True,
) -> Tensor:
    """SDPA a document: any device, precision, dropout and window; with a cap or sinks, causal, by plain products."""
    outputs = []
    for span in merge_rows(spans, -1, 0):
        q, k, v = (span.of(x) for x in (query, key, value))
        mask = None
        if window is not None and window < span.length:
            mask = window_mask(span.length, window, query.device, causal)
        if softcap is not None or sinks is not None:
            out = plain_attention(q, k, v, scale, dropout, mask, softcap, sinks).transpose(1, 2)
        else:
            is_causal = causal and mask is None
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, scale=scale, enable_gqa=True
            )
        outputs.append(out.squeeze(0)[:, span.shared :])
    B, heads, T, _D = query.shape
    return torch.cat(outputs, dim=1).view(heads, B, T, value.shape[-1]).permute(1, 2, 0, 3).contiguous()


def window_mask(num_tokens: int, window: int, device: torch.device, causal: bool = True) -> Tensor:
    """(T, T) bool, true where a token may look: at itself and the `window` - 1 before it, or else after it as well."""
    ones = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device)
    return ones.tril(0 if causal else window - 1) & ~ones.tril(-window)


def two_way_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float, mask: Tensor | None, window: int | None
) -> Tensor:
    """(B, heads, T, D) to (B, T, heads, D), where a token sees those after it too; `mask` as SDPA takes it."""
    T = query.shape[2]
    if mask is None and window is not None and window < T:
        mask = window_mask(T, window, query.device, causal=False)
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2).contiguous()


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
