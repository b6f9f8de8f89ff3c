"""Losses of a student under a teacher against loops over tokens and outcomes in plain Python, in float64."""

import math

import pytest
import torch

from llm_lightning.objectives import chunks
from llm_lightning.objectives.distillation import (
    DistillationLoss,
    TeacherChunk,
    head_distillation,
    linear_distillation,
)
from llm_lightning.objectives.language import IGNORE_INDEX, HeadScaling, linear_cross_entropy

N, H, V = 23, 8, 31
KINDS = [
    DistillationLoss("forward_kl", labels_weight=0.0),
    DistillationLoss("forward_kl", temperature=2.0, labels_weight=0.3),
    DistillationLoss("reverse_kl", labels_weight=0.1),
    DistillationLoss("reverse_kl", temperature=0.5, labels_weight=0.0),
    DistillationLoss("jensen_shannon", beta=0.3, labels_weight=0.1),
    DistillationLoss("jensen_shannon", beta=0.9, temperature=1.5, labels_weight=0.0),
]
FORMS = ["linear", "head"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", dict.fromkeys(("cpu", "cuda"), 7 * V * 4))
    monkeypatch.setattr(chunks, "MIN_CHUNK_TOKENS", 1)
    monkeypatch.setattr(chunks, "ROUNDING", 3)


class Known:
    """A teacher whose logits are known, of which it names the k likeliest tokens; None: all, in order."""

    def __init__(self, logits, k=None):
        self.logits = torch.cat([logits, logits.new_zeros(3, V)])  # rows that mean nothing
        self.k = k

    def chunk(self, places, temperature):
        logprobs = (self.logits[places] / temperature).log_softmax(-1)
        return TeacherChunk(logprobs) if self.k is None else TeacherChunk(*logprobs.topk(self.k))


def inputs(seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, H, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, H, generator=g, dtype=torch.float64, requires_grad=True)
    return hidden, weight, torch.randint(V, (N,), generator=g), 2 * torch.randn(N, V, generator=g, dtype=torch.float64)


def sums(form, hidden, weight, targets, teacher, objective, scaling=HeadScaling()):  # noqa: B008 (frozen)
    if form == "linear":
        return linear_distillation(hidden, weight, targets, teacher, objective, scaling=scaling)
    return head_distillation(hidden, lambda h: scaling(h @ weight.t()), targets, V, teacher, objective)


def by_hand(hidden, weight, targets, teacher, objective, scaling=HeadScaling()):  # noqa: B008
    """Loss and divergence, term by term, with autograd's own derivatives."""
    t, logits = objective.temperature, hidden @ weight.t() * scaling.scale
    if scaling.softcap:
        logits = scaling.softcap * torch.tanh(logits / scaling.softcap)
    chunk = teacher.chunk(slice(0, N), t)
    loss, total = 0.0, 0.0
    for row in range(N):
        q = (logits[row] / t).exp() / (logits[row] / t).exp().sum()
        p = chunk.logprobs[row].exp()
        if chunk.ids is not None:
            own = [q[number] for number in chunk.ids[row]]
            q = torch.stack([*own, 1 - sum(own)]) if len(own) < V else torch.stack(own)
            p = torch.cat([p, (1 - p.sum())[None]]) if len(own) < V else p
        d = 0.0
        for a, b in zip(p, q, strict=True):
            m = objective.beta * a + (1 - objective.beta) * b
            d = d + {
                "forward_kl": lambda a, b, m: a * (a / b).log(),
                "reverse_kl": lambda a, b, m: b * (b / a).log(),
                "jensen_shannon": lambda a, b, m: (
                    objective.beta * a * (a / m).log() + (1 - objective.beta) * b * (b / m).log()
                ),
            }[objective.kind](a, b, m)
        nll = logits[row].exp().sum().log() - logits[row, targets[row]] if targets[row] >= 0 else 0.0
        loss = loss + (1 - objective.labels_weight) * t * t * d + objective.labels_weight * nll
        total += t * t * float(d.detach())
    return loss, total


@pytest.mark.parametrize("k", [None, 5, V])
@pytest.mark.parametrize("objective", KINDS, ids=lambda one: f"{one.kind}-{one.temperature}-{one.labels_weight}")
@pytest.mark.parametrize("form", FORMS)
def test_losses_and_gradients_equal_the_loops(form, objective, k):
    hidden, weight, targets, logits = inputs()
    teacher = Known(logits, k)
    ours = sums(form, hidden, weight, targets, teacher, objective)
    expected, divergence = by_hand(hidden, weight, targets, teacher, objective)
    torch.testing.assert_close(ours.loss.double(), expected, rtol=1e-5, atol=1e-5)
    assert float(ours.divergence) == pytest.approx(divergence, rel=1e-5)
    found = torch.autograd.grad(ours.loss / 3, (hidden, weight))
    for a, b in zip(found, torch.autograd.grad(expected / 3, (hidden, weight)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # the softmax is taken in float32, as in training


@pytest.mark.parametrize("scaling", [HeadScaling(0.3), HeadScaling(1.0, 5.0), HeadScaling(0.5, 3.0)])
@pytest.mark.parametrize("form", FORMS)
def test_what_an_architecture_does_to_logits_is_in_the_gradient(form, scaling):
    hidden, weight, targets, logits = inputs()
    ours = sums(form, hidden, weight, targets, Known(logits, 5), KINDS[1], scaling)
    expected, _ = by_hand(hidden, weight, targets, Known(logits, 5), KINDS[1], scaling)
    torch.testing.assert_close(ours.loss.double(), expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(ours.loss, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [None, 4])
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("form", FORMS)
def test_a_teacher_that_is_the_student_costs_nothing_and_moves_nothing(form, kind, k):
    hidden, weight, targets, _ = inputs()
    teacher = Known((hidden @ weight.t()).detach(), k)
    ours = sums(form, hidden, weight, targets, teacher, DistillationLoss(kind, labels_weight=0.0))
    assert abs(float(ours.loss.detach())) < 1e-5
    for gradient in torch.autograd.grad(ours.loss, (hidden, weight)):
        assert gradient.abs().max() < 2e-6


@pytest.mark.parametrize("form", FORMS)
def test_labels_alone_are_the_language_loss(form):
    hidden, weight, targets, logits = inputs()
    ours = sums(form, hidden, weight, targets, Known(logits), DistillationLoss(labels_weight=1.0))
    plain = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(ours.loss.double(), plain.loss.double(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(ours.nll.double(), plain.nll.double(), rtol=1e-6, atol=1e-5)
    assert ours.correct == plain.correct
    for a, b in zip(
        torch.autograd.grad(ours.loss, (hidden, weight)), torch.autograd.grad(plain.loss, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_tail_alone_tells_how_sure_the_teacher_is():
    """With one named token the loss is the binary KL of it."""
    hidden, weight, targets, logits = inputs()
    ours = linear_distillation(hidden, weight, targets, Known(logits, 1), DistillationLoss(labels_weight=0.0))
    student, teacher = (hidden @ weight.t()).softmax(-1).detach(), logits.softmax(-1)
    total = 0.0
    for row in range(N):
        best = int(teacher[row].argmax())
        p, q = float(teacher[row, best]), float(student[row, best])
        total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert float(ours.loss.detach()) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_any_cut_gives_the_same_sums_and_gradients(form):
    hidden, weight, targets, logits = inputs()
    whole = sums(form, hidden, weight, targets, Known(logits, 6), KINDS[4])
    expected = torch.autograd.grad(whole.loss, (hidden, weight))
    parts = [slice(0, 1), slice(1, 9), slice(9, N)]
    cut = [sums(form, hidden[p], weight, targets[p], Known(logits[p], 6), KINDS[4]) for p in parts]
    total = sum(part.loss for part in cut)
    torch.testing.assert_close(total, whole.loss, rtol=1e-6, atol=1e-6)
    for a, b in zip(torch.autograd.grad(total, (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_nothing_to_learn_from_is_no_loss():
    hidden, weight, targets, logits = inputs()
    for form in FORMS:
        ours = sums(form, hidden[:0], weight, targets[:0], Known(logits[:0]), KINDS[0])
        assert float(ours.loss.detach()) == 0 and not torch.autograd.grad(ours.loss, hidden)[0].any()


@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize("form", FORMS)
def test_where_a_text_is_no_example_only_the_teacher_has_a_say(form, k):
    hidden, weight, targets, logits = inputs(5)
    is_example, teacher = torch.arange(N) % 3 > 0, Known(logits, k)
    some = targets.where(is_example, IGNORE_INDEX)
    ours = sums(form, hidden, weight, some, teacher, KINDS[4])
    expected, _ = by_hand(hidden, weight, some, teacher, KINDS[4])
    torch.testing.assert_close(ours.loss.double(), expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(ours.loss, (hidden, weight))
    for a, b in zip(found, torch.autograd.grad(expected, (hidden, weight)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    every = (hidden @ weight.t()).log_softmax(-1)
    assert float(ours.nll) == pytest.approx(-float(every[is_example, targets[is_example]].sum()), rel=1e-5)
    assert ours.correct == (every.argmax(-1) == targets)[is_example].sum()
