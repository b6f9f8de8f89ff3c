"""Chunked losses against torch's own on whole logits, in float64."""

import pytest
import torch
import torch.nn.functional as F

from llm_lightning.objectives import chunks, language
from llm_lightning.objectives.language import (
    HeadScaling,
    head_cross_entropy,
    head_logprobs,
    linear_cross_entropy,
    next_token_targets,
)

N, H, V = 50, 16, 97


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", dict.fromkeys(("cpu", "cuda"), 7 * V * 4))
    monkeypatch.setattr(chunks, "MIN_CHUNK_TOKENS", 1)
    monkeypatch.setattr(chunks, "ROUNDING", 3)


def inputs(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=g, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, H, generator=g, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(V, (N,), generator=g)


def reference(hidden, weight, targets, z_loss=0.0, scaling=HeadScaling(), smoothing=0.0):  # noqa: B008 (frozen)
    logits = hidden @ weight.t() * scaling.scale
    if scaling.softcap:
        logits = scaling.softcap * torch.tanh(logits / scaling.softcap)
    nll = F.cross_entropy(logits, targets, reduction="sum")
    spread = -logits.log_softmax(-1).mean(dim=-1).sum()
    return (1 - smoothing) * nll + smoothing * spread + z_loss * logits.logsumexp(-1).square().sum(), nll


@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (1e-2, 0.0), (0.0, 0.1), (1e-2, 0.3)])
@pytest.mark.parametrize("scaling", [HeadScaling(), HeadScaling(0.3), HeadScaling(1.0, 5.0), HeadScaling(0.5, 3.0)])
@pytest.mark.parametrize("form", ["linear", "head"])
def test_loss_and_gradients_equal_the_plain_formula(form, scaling, z_loss, smoothing):
    hidden, weight, targets = inputs()
    penalties = {"z_loss": z_loss, "label_smoothing": smoothing}
    if form == "linear":
        sums = linear_cross_entropy(hidden, weight, targets, **penalties, scaling=scaling)
    else:
        sums = head_cross_entropy(hidden, lambda h: scaling(h @ weight.t()), targets, V, **penalties)
    loss, nll, correct = sums.loss, sums.nll, sums.correct
    ours = torch.autograd.grad(loss / 3, (hidden, weight))
    expected, expected_nll = reference(hidden, weight, targets, z_loss, scaling, smoothing)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(nll.double(), expected_nll, rtol=1e-6, atol=1e-6)
    assert correct == ((hidden @ weight.t()).argmax(-1) == targets).sum()
    # The softmax is taken in float32, as it is in training.
    for a, b in zip(ours, torch.autograd.grad(expected / 3, (hidden, weight)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_frozen_head_gets_no_gradient_and_evaluation_no_graph():
    hidden, weight, targets = inputs(torch.float32)
    loss, *_ = linear_cross_entropy(hidden, weight.detach(), targets)
    loss.backward()
    assert hidden.grad is not None and weight.grad is None
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, targets)[0].grad_fn is None


@pytest.mark.parametrize("form", ["linear", "head"])
def test_no_trained_token_is_a_zero_with_zero_gradients(form):
    hidden, weight, targets = inputs(torch.float32)
    none = targets[:0]
    if form == "linear":
        loss, *_ = linear_cross_entropy(hidden[:0], weight, none)
    else:
        loss, *_ = head_cross_entropy(hidden[:0], lambda h: h @ weight.t(), none, V)
    (grad,) = torch.autograd.grad(loss, hidden)
    assert loss == 0 and not grad.any()


def test_bfloat16_autocast_stays_near_float32():
    hidden, weight, targets = inputs(torch.float32)
    expected, *_ = linear_cross_entropy(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss, *_ = linear_cross_entropy(hidden, weight, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=0)


def test_targets_are_the_next_tokens_of_the_same_row():
    labels = torch.tensor([[-100, 5, 6, -100], [-100, -100, 7, 8]])
    positions, targets = next_token_targets(labels)
    assert positions.tolist() == [0, 1, 5, 6]
    assert targets.tolist() == [5, 6, 7, 8]


def test_memory_stays_at_one_chunk():
    """The largest tensor of the loss is a chunk's logits, not N x V."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.numel = max(self.numel, out.numel())
            return out

    hidden, weight, targets = inputs(torch.float32)
    with Largest() as seen:
        linear_cross_entropy(hidden, weight, targets)[0].backward()
    assert seen.numel <= max(7 * V, V * H)


def linear_form(hidden, weight, targets):
    return linear_cross_entropy(hidden, weight, targets).loss


def head_form(hidden, weight, targets):
    return head_cross_entropy(hidden, lambda h: F.linear(h, weight), targets, len(weight)).loss


def logprobs_form(hidden, weight, targets):
    return -head_logprobs(hidden, lambda h: F.linear(h, weight), targets, len(weight)).logprobs.sum()


def plain_form(hidden, weight, targets):
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")


def error_of_head_gradient(form, weights_dtype=torch.float32):
    """Relative to float64, at the same rounded inputs."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4096, 32, generator=generator) + 0.5  # a mean, as real states have: its sum grows
    weight = (0.3 * torch.randn(256, 32, generator=generator)).to(weights_dtype).requires_grad_()
    targets = torch.randint(len(weight), (len(hidden),), generator=generator)
    exact = weight.detach().bfloat16().double().requires_grad_()
    (expected,) = torch.autograd.grad(plain_form(hidden.bfloat16().double(), exact, targets), exact)
    with torch.autocast("cpu", torch.bfloat16):
        loss = form(hidden, weight, targets)
    (gradient,) = torch.autograd.grad(loss, weight)
    assert gradient.dtype == weights_dtype
    return (gradient.double() - expected).norm() / expected.norm()


@pytest.mark.parametrize("num_chunks", [1, 4, 16, 64])
@pytest.mark.parametrize("form", [linear_form, head_form, logprobs_form])
def test_the_heads_gradient_under_autocast_is_no_worse_for_more_chunks(form, num_chunks, monkeypatch):
    monkeypatch.setattr(language, "chunk_length", lambda vocab_size, device: 4096 // num_chunks)
    assert error_of_head_gradient(form) <= 1.05 * error_of_head_gradient(plain_form)


@pytest.mark.parametrize("num_chunks", [4, 64])
def test_bfloat16_weights_get_a_gradient_that_is_rounded_once(num_chunks, monkeypatch):
    monkeypatch.setattr(language, "chunk_length", lambda vocab_size, device: 4096 // num_chunks)
    bound = 1.3 * error_of_head_gradient(plain_form, torch.bfloat16)
    assert error_of_head_gradient(linear_form, torch.bfloat16) <= bound


def num_correct(form, hidden, weight, targets):
    if form == "linear":
        return linear_cross_entropy(hidden, weight, targets).correct
    return head_cross_entropy(hidden, lambda h: h @ weight.t(), targets, len(weight)).correct


@pytest.mark.parametrize("form", ["linear", "head"])
@pytest.mark.parametrize("vocab_size", [97, 192, 256])
def test_of_equal_logits_only_the_first_counts_as_chosen(form, vocab_size):
    """As greedy decoding chooses."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(vocab_size, (300,), generator=generator)
    hidden = torch.eye(vocab_size)[torch.randint(vocab_size, (300,), generator=generator)]
    weight = torch.randint(3, (vocab_size, vocab_size), generator=generator).float()
    logits = hidden @ weight.t()
    correct = num_correct(form, hidden, weight, targets)
    assert correct == (logits.argmax(-1) == targets).sum()
    assert correct < (logits.amax(-1) == logits.gather(1, targets[:, None])[:, 0]).sum() / 2


@pytest.mark.parametrize("form", ["linear", "head"])
def test_ties_by_rounding_to_bfloat16_are_none_of_the_networks_merits(form):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2048, 8, generator=generator), torch.randn(1024, 8, generator=generator)
    hidden[:, 0], weight[:, 0] = 1, 8  # all logits are near 8, where bfloat16 has steps of 1/16
    logits = hidden.bfloat16() @ weight.bfloat16().t()
    highest = logits == logits.amax(-1, keepdim=True)
    targets = 1023 - highest.flip(1).float().argmax(-1)  # the last of the highest
    with torch.autocast("cpu", torch.bfloat16):
        correct = num_correct(form, hidden, weight, targets)
    assert correct == (highest.sum(-1) == 1).sum() < 0.95 * len(hidden)


def test_a_head_that_knows_nothing_is_hardly_ever_right():
    targets = torch.tensor([5, 3, 0, 7])
    assert linear_cross_entropy(torch.ones(4, 8), torch.zeros(64, 8), targets).correct == 1
