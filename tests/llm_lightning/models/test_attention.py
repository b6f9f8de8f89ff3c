"""Document attention against a dense mask in float64."""

import pytest
import torch
from transformers import Gemma2Config, GptOssConfig, MistralConfig

from llm_lightning.models.attention import ATTENTION, Documents, document_attention
from llm_lightning.models.attention.cpu import cpu_attention
from llm_lightning.models.attention.cuda import varlen_attention
from llm_lightning.models.backbone import Backbone

B, HEADS, KV_HEADS, T, D = 3, 4, 2, 24, 8
SMALL = {
    "vocab_size": 64, "initializer_range": 0.3, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def positions() -> torch.Tensor:
    rows = [[10, 1, 13], [24], [5, 5, 14]]
    return torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in rows])


def inputs(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    shapes = [(B, T, HEADS, D), (B, T, KV_HEADS, D), (B, T, KV_HEADS, D)]
    return [torch.randn(s, generator=g, dtype=dtype).transpose(1, 2).requires_grad_() for s in shapes]


def dense(query, key, value, position_ids, window=None):
    """softmax(QK/sqrt(D)) V under an explicit mask."""
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (key, value))
    document = (position_ids == 0).cumsum(1)
    allowed = (document[:, :, None] == document[:, None]) & torch.ones(T, T, dtype=torch.bool).tril()
    if window:
        allowed &= ~torch.ones(T, T, dtype=torch.bool).tril(-window)
    scores = (query @ key.transpose(2, 3) * D**-0.5).masked_fill(~allowed[:, None], -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 4, 100])
@pytest.mark.parametrize("position_ids", [positions(), torch.arange(T).expand(B, T)], ids=["packed", "whole rows"])
def test_output_and_gradients_equal_the_dense_mask(position_ids, window):
    x = inputs()
    out, _ = document_attention(None, *x, None, documents=Documents.of(position_ids), sliding_window=window)
    expected = dense(*x, position_ids, window)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    torch.testing.assert_close(out, expected)
    for a, b in zip(torch.autograd.grad(out, x, g), torch.autograd.grad(expected, x, g), strict=True):
        torch.testing.assert_close(a, b)


# The second document of row 0 begins with the first 7 tokens of the first one, and so does the third of row 2 with 4 of
# its second one.
SHARED = torch.tensor(
    [[0, 0, 10, 0, 0], [0, 10, 16, 0, 7], [0, 16, 24, 0, 0], [1, 0, 24, 0, 0], [2, 0, 5, 0, 0], [2, 5, 15, 0, 0],
     [2, 15, 24, 5, 9]]
)  # fmt: skip


def dense_by_document(query, key, value, spans, window=None):
    """softmax(QK/sqrt(D)) V of each document written out whole, as if nothing were shared."""
    out = torch.zeros_like(query)
    for row, start, end, first, last in spans.tolist():
        places = [*range(first, last), *range(start, end)]
        n, shared = len(places), last - first
        q, k, v = (x[row][:, places].repeat_interleave(HEADS // x.shape[1], 0) for x in (query, key, value))
        allowed = torch.ones(n, n, dtype=torch.bool).tril()
        if window:
            allowed &= ~torch.ones(n, n, dtype=torch.bool).tril(-window)
        scores = (q @ k.transpose(1, 2) * D**-0.5).masked_fill(~allowed, -torch.inf)
        own = (scores.softmax(-1) @ v)[:, shared:]
        out[row, :, start:end] = own
    return out.transpose(1, 2)


@pytest.mark.parametrize("window", [None, 4])
def test_responses_that_share_a_prompt_see_it_as_their_own(window):
    x = inputs()
    out, _ = document_attention(None, *x, None, documents=Documents.of_spans(SHARED, T), sliding_window=window)
    expected = dense_by_document(*x, SHARED, window)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    torch.testing.assert_close(out, expected)
    for a, b in zip(torch.autograd.grad(out, x, g), torch.autograd.grad(expected, x, g), strict=True):
        torch.testing.assert_close(a, b)


def test_the_same_for_kernels_that_take_documents_one_after_the_other(monkeypatch):
    """The way to CUDA's kernel, which takes every document whole: here a plain loop stands in for that one call."""

    def varlen_attn(q, k, v, ends, *_, scale, **__):
        spans = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        parts = [[x[a:b].transpose(0, 1) for x in (q, k, v)] for a, b in spans]
        attend = torch.nn.functional.scaled_dot_product_attention
        return torch.cat([attend(*part, is_causal=True, scale=scale).transpose(0, 1) for part in parts])

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    x = inputs()
    documents = Documents.of_spans(SHARED, T)
    out = varlen_attention(*x, documents, D**-0.5, None)
    torch.testing.assert_close(out, dense_by_document(*x, SHARED))


@pytest.fixture
def by_onednn():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


def test_documents_of_every_length_take_no_new_memory(by_onednn):
    """Each step has documents of other lengths; the first ones may still make room."""
    import psutil

    q, k, v = (torch.randn(1, heads, 1024, 32, requires_grad=True) for heads in (4, 2, 2))
    g = torch.Generator().manual_seed(0)
    used = []
    for _ in range(12):
        cuts = torch.randperm(1023, generator=g)[:15].sort().values + 1
        starts, ends = torch.cat([cuts.new_zeros(1), cuts]), torch.cat([cuts, cuts.new_tensor([1024])])
        none = torch.zeros_like(starts)
        out, _ = cpu_attention(q, k, v, torch.stack([none, starts, ends, none, none], 1), 0.2)
        out.sum().backward()
        used.append(psutil.Process().memory_info().rss / 2**20)
    assert used[-1] - used[2] < 30, used


def test_the_precision_of_products_is_put_back(by_onednn):
    x = [t.float() for t in inputs()]
    document_attention(None, *x, None, documents=Documents.of(positions()))
    assert torch.get_float32_matmul_precision() == "medium"


def test_bfloat16_is_near_float32():
    x = inputs(torch.float32)
    half = [t.detach().bfloat16().requires_grad_() for t in x]
    results = []
    for tensors in (x, half):
        out, _ = document_attention(None, *tensors, None, documents=Documents.of(positions()))
        assert out.dtype == tensors[0].dtype
        results.append([out, *torch.autograd.grad(out.float().square().sum(), tensors)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b.float(), a, rtol=0.05, atol=0.05)


def test_operator_is_well_formed():
    """torch's own checks of the custom operator: schema, fake tensors, autograd registration."""
    x = [t.detach().requires_grad_() for t in inputs(torch.float32)]
    spans = Documents.of(positions()).spans
    torch.library.opcheck(cpu_attention, (*x, spans, D**-0.5))


def test_a_new_number_of_documents_does_not_recompile():
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()

    @torch.compile(backend=counter)
    def call(q, k, v, documents):
        return document_attention(None, q, k, v, None, documents=documents)[0]

    x = inputs(torch.float32)
    for lengths in ([10, 14], [5, 5, 14], [2, 2, 2, 18]):
        row = torch.cat([torch.arange(n) for n in lengths])
        call(*x, Documents.of(row.expand(B, T)))
    assert counter.frame_count == 1


def test_documents_of_a_batch():
    documents = Documents.of(positions())
    assert documents.spans[:, :3].tolist() == [
        [0, 0, 10], [0, 10, 11], [0, 11, 24], [1, 0, 24], [2, 0, 5], [2, 5, 10], [2, 10, 24],
    ]  # fmt: skip
    assert documents.cu_seqlens.tolist() == [0, 10, 11, 24, 48, 53, 58, 72]
    assert documents.longest == 24
    assert not documents.spans[:, 3:].any() and documents.source is None and documents.kept is None


def test_attention_with_a_bias_is_refused():
    with pytest.raises(ValueError, match="position_bias"):
        document_attention(None, *inputs(), None, documents=Documents.of(positions()), position_bias=torch.ones(1))


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SMALL, sliding_window=9),
        Gemma2Config(**SMALL, head_dim=8, attn_logit_softcapping=2.0, sliding_window=9),
        GptOssConfig(**SMALL, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=9),
    ],
    ids=["plain", "capped", "sinks"],
)
@torch.no_grad()
def test_a_network_that_is_called_plainly_keeps_to_its_window(config):
    networks = []
    for attention in (ATTENTION, "eager"):
        torch.manual_seed(1)
        networks.append(Backbone(config=config, attention=attention).build().eval())
    text = torch.randint(0, 64, (2, 40))
    ours, expected = (network(input_ids=text, use_cache=False).logits for network in networks)
    assert torch.allclose(ours, expected, atol=1e-4)
