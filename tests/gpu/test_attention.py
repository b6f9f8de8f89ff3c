"""Variable-length attention against dense float64 masks, forward and backward."""

import pytest
import torch

from llm_lightning.models.attention import Documents, document_attention

pytestmark = pytest.mark.gpu
B, HEADS, T, D = 2, 4, 64, 64
PACKED = torch.tensor([[0, 0, 30, 0, 0], [0, 30, 31, 0, 0], [0, 31, 64, 0, 0], [1, 0, 64, 0, 0]])
# The second document of row 0 begins with the first 17 tokens of the first one, and so does the last of row 1.
SHARED = torch.tensor([[0, 0, 30, 0, 0], [0, 30, 50, 0, 17], [0, 50, 64, 0, 0], [1, 0, 40, 0, 0], [1, 40, 64, 0, 9]])


def dense(query, key, value, spans, window):
    """softmax(QK/sqrt(D)) V of each document written out whole."""
    rows = []
    for row in range(B):
        parts = []
        for _, start, end, first, last in spans[spans[:, 0] == row].tolist():
            places = [*range(first, last), *range(start, end)]
            q, k, v = (x[row][:, places].repeat_interleave(HEADS // x.shape[1], 0) for x in (query, key, value))
            allowed = torch.ones(len(places), len(places), dtype=torch.bool).tril()
            if window:
                allowed &= ~torch.ones_like(allowed).tril(-window)
            scores = (q @ k.transpose(1, 2) * D**-0.5).masked_fill(~allowed, -torch.inf)
            parts.append((scores.softmax(-1) @ v)[:, last - first :])
        rows.append(torch.cat(parts, 1))
    return torch.stack(rows).transpose(1, 2)


def relative_error(found, expected):
    return float((found.detach().double().cpu() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("spans", [PACKED, SHARED], ids=["packed", "shared prompts"])
def test_output_and_gradients_equal_a_dense_mask(device, spans, window, kv_heads):
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    g = torch.Generator().manual_seed(0)
    exact = [torch.randn(B, n, T, D, generator=g).to(dtype) for n in (HEADS, kv_heads, kv_heads)]
    ours = [x.to(device).requires_grad_() for x in exact]
    exact = [x.double().requires_grad_() for x in exact]
    documents = Documents.of_spans(spans, T).to(device)
    out, _ = document_attention(None, *ours, None, documents=documents, sliding_window=window)
    expected = dense(*exact, spans, window)
    direction = torch.randn(expected.shape, generator=g, dtype=torch.float64)
    gradients = torch.autograd.grad(out, ours, direction.to(out))
    exact_gradients = torch.autograd.grad(expected, exact, direction)
    bound = 1e-2 if dtype == torch.bfloat16 else 1e-5
    assert relative_error(out, expected) < bound
    for found, wanted in zip(gradients, exact_gradients, strict=True):
        assert relative_error(found, wanted) < bound
