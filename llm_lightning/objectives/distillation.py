"""Losses that draw a student's distributions to a teacher's, chunk by chunk: neither's logits of a whole batch exist.

For each trained token P is the teacher's distribution over what may come next and Q the student's, both at the
temperature t. Where the teacher names only its K most likely tokens, all others are one more outcome, the tail, so that
what is compared are distributions over K + 1 outcomes. A loss is t^2 times a divergence of the two (Hinton et al.,
arXiv:1503.02531), which keeps gradients as large as at t = 1.

Gradients have a closed form. If g is the derivative of the divergence by Q, that by the student's logits is
Q * (g - sum(Q * g)) / t; it is computed in the forward pass, while a chunk's logits are at hand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llm_lightning.objectives.chunks import (
    add_product,
    chunk_length,
    highest_logits,
    own_casts,
    padded,
    ready_gradients,
    sum_dtype,
)
from llm_lightning.objectives.language import IGNORE_INDEX, HeadScaling

Kind = Literal["forward_kl", "reverse_kl", "jensen_shannon"]

LEAST = 1e-30
"""Of a probability: float32's logarithm of it is finite, and nothing that matters is below it."""

LEAST_TAIL = 1e-7
"""Of the tail: what rounding leaves of 1 less a sum of probabilities in float32."""


@dataclass(frozen=True)
class DistillationLoss:
    """What a student's token costs.

    Args:
        kind: `forward_kl`, KL(P || Q), covers all that the teacher finds likely, and is the usual one on given texts;
            `reverse_kl`, KL(Q || P), keeps to what it finds most likely, for texts that the student wrote;
            `jensen_shannon` is between the two (GKD, arXiv:2306.13649).
        beta: of `jensen_shannon`: beta KL(P || M) + (1 - beta) KL(Q || M), where M = beta P + (1 - beta) Q.
        temperature: of both distributions; above 1 the less likely tokens count more.
        labels_weight: share of the next-token loss on the text itself, from 0 to 1. A tenth is what published recipes
            give it (axolotl), and keeps a student near the data where the teacher is wrong.
    """

    kind: Kind = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    labels_weight: float = 0.1


class TeacherChunk(NamedTuple):
    """The teacher's distributions for n tokens.

    Args:
        logprobs: (n, V) or (n, K) float32, at the loss's temperature.
        ids: (n, K) the tokens that they belong to; None: all, in order.
    """

    logprobs: Tensor
    ids: Tensor | None = None


class Teacher(Protocol):
    """Whatever knows a teacher's distributions for N tokens."""

    def chunk(self, places: slice, temperature: float) -> TeacherChunk:
        """Of the tokens at `places`, one row for each place; behind the last token rows mean nothing."""
        ...


class DistillationSums(NamedTuple):
    """Sums over the trained tokens.

    Args:
        loss: () to back-propagate once.
        divergence: () without gradient, the part that the teacher has in it, unweighted.
        nll: () the negative log-likelihood of the text in nats, without gradient.
        correct: () how many tokens the student would have chosen itself, without gradient.
    """

    loss: Tensor
    divergence: Tensor
    nll: Tensor
    correct: Tensor


def divergence(p: Tensor, q: Tensor, objective: DistillationLoss) -> tuple[Tensor, Tensor]:
    """(n,) divergences, and (n, m) Q times their derivatives by Q.

    Args:
        p, q: (n, m) probabilities of m outcomes; rows sum to 1.
        objective: which divergence.
    """
    log_p, log_q = p.clamp(min=LEAST).log(), q.clamp(min=LEAST).log()
    if objective.kind == "forward_kl":
        return (p * (log_p - log_q)).sum(-1), -p
    if objective.kind == "reverse_kl":
        pulled = q * (log_q - log_p)
        return pulled.sum(-1), pulled
    beta = objective.beta
    log_m = (beta * p + (1 - beta) * q).clamp(min=LEAST).log()
    pulled = (1 - beta) * q * (log_q - log_m)
    return (beta * p * (log_p - log_m)).sum(-1) + pulled.sum(-1), pulled


def token_losses(
    logits: Tensor, targets: Tensor, teacher: TeacherChunk, objective: DistillationLoss
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of n tokens the losses (n,), the divergences (n,), the negative log-likelihoods (n,), and the derivatives of the
    losses by the logits (n, V).

    Args:
        logits: (n, V) float32, the student's.
        targets: (n,) the text's tokens; `IGNORE_INDEX` where it is no example, and only the teacher has a say.
        teacher: of the same tokens.
        objective: what they cost.
    """
    t, weight = objective.temperature, objective.labels_weight
    logprobs = logits.log_softmax(-1)
    q = logprobs.exp() if t == 1 else (logits / t).softmax(-1)
    if teacher.ids is None or teacher.ids.shape[1] == logits.shape[1]:
        p = teacher.logprobs.exp()
        p = p if teacher.ids is None else torch.zeros_like(p).scatter_(1, teacher.ids, p)
        found, pulled = divergence(p, q, objective)
        grad = pulled.sub_(q * pulled.sum(-1, keepdim=True))
    else:
        found, grad = _of_likeliest(teacher.ids, teacher.logprobs.exp(), q, objective)
    is_example, targets = (targets != IGNORE_INDEX).to(logits.dtype), targets.clamp(min=0)
    nll = -logprobs.gather(1, targets[:, None]).squeeze(1) * is_example
    grad *= (1 - weight) * t
    if weight:
        share = weight * is_example
        grad += share[:, None] * (q if t == 1 else logprobs.exp())
        grad[torch.arange(len(targets), device=targets.device), targets] -= share
    return (1 - weight) * t * t * found + weight * nll, t * t * found, nll, grad


def _of_likeliest(ids: Tensor, p: Tensor, q: Tensor, objective: DistillationLoss) -> tuple[Tensor, Tensor]:
    """(n,) divergences over the tokens `ids` and the tail, and t times their derivatives by the logits (n, V)."""
    own = q.gather(1, ids)
    tails = [(1 - part.sum(-1, keepdim=True)).clamp(min=LEAST_TAIL) for part in (p, own)]
    found, pulled = divergence(torch.cat([p, tails[0]], 1), torch.cat([own, tails[1]], 1), objective)
    mean = pulled.sum(-1, keepdim=True)
    grad = q * (pulled[:, -1:] / tails[1] - mean)
    return found, grad.scatter_(1, ids, pulled[:, :-1] - own * mean)


class _LinearDistillation(torch.autograd.Function):
    """Sum over the tokens of `hidden @ weight.T`; gradients are ready when the forward pass ends."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        trained_weight: Tensor,
        targets: Tensor,
        teacher: Teacher,
        objective: DistillationLoss,
        scaling: HeadScaling,
    ) -> tuple[Tensor, ...]:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        count, weight = len(hidden), trained_weight.to(hidden.dtype)
        hidden, targets = padded(hidden), padded(targets)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=sum_dtype(weight)) if needs_weight else None
        sums = [hidden.new_zeros((), dtype=torch.float32) for _ in range(4)]
        step = chunk_length(len(weight), hidden.device)
        for start in range(0, len(hidden), step):
            place = slice(start, min(start + step, len(hidden)))
            h, y = hidden[place], targets[place]
            logits = scaling(h @ weight.t()).float()
            own = slice(0, max(0, count - start))  # padding has no loss; its states are zero, so it moves no weight
            *losses, grad = token_losses(logits, y, teacher.chunk(place, objective.temperature), objective)
            is_right = highest_logits(logits)[1].squeeze(1) == y
            for total, part in zip(sums, (*losses, is_right), strict=True):
                total += part[own].sum()
            grad = (grad if scaling == HeadScaling() else grad.mul_(scaling.slope(logits))).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[place])
            if grad_weight is not None:
                add_product(grad_weight, grad.t(), h)
        ctx.save_for_backward(None if grad_hidden is None else grad_hidden[:count], grad_weight)
        ctx.weight_dtype = trained_weight.dtype
        ctx.mark_non_differentiable(*sums[1:])
        return tuple(sums)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *ready_gradients(ctx, grad_loss), *(None,) * 4


class _FromLogits(torch.autograd.Function):
    """Sums over tokens whose logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, teacher: TeacherChunk, objective: DistillationLoss
    ) -> tuple[Tensor, ...]:
        *losses, grad = token_losses(logits, targets, teacher, objective)
        ctx.save_for_backward(grad)
        sums = [part.sum() for part in losses]
        ctx.mark_non_differentiable(*sums[1:])
        return tuple(sums)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss, None, None, None


def linear_distillation(
    hidden_states: Tensor,
    weight: Tensor,
    targets: Tensor,
    teacher: Teacher,
    objective: DistillationLoss,
    *,
    scaling: HeadScaling = HeadScaling(),  # noqa: B008 (frozen)
) -> DistillationSums:
    """Summed losses of a bias-free linear head, with one chunk of both networks' logits in memory at a time.

    Args:
        hidden_states: (N, H), the student's that predict `targets`.
        weight: (V, H), the head's weight.
        targets: (N,) token ids; every one counts. Where one is `IGNORE_INDEX` there is no next-token loss.
        teacher: of the same tokens.
        objective: what they cost.
        scaling: what the architecture does to its logits.
    """
    if torch.is_autocast_enabled(hidden_states.device.type):
        hidden_states = hidden_states.to(torch.get_autocast_dtype(hidden_states.device.type))
    return DistillationSums(*_LinearDistillation.apply(hidden_states, weight, targets, teacher, objective, scaling))


def head_distillation(
    hidden_states: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    vocab_size: int,
    teacher: Teacher,
    objective: DistillationLoss,
) -> DistillationSums:
    """The same for any head (with a bias, an adapter, quantized): chunks are recomputed in the backward pass.

    Args:
        hidden_states, targets, teacher, objective: as in `linear_distillation`.
        head: maps (n, H) to logits (n, V), with all that the architecture does to them.
        vocab_size: V, for the size of a chunk.
    """

    def chunk_sums(h: Tensor, y: Tensor, place: slice) -> tuple[Tensor, ...]:
        with own_casts(h.device):
            logits = head(h).float()
        is_right = highest_logits(logits.detach())[1].squeeze(1) == y
        known = teacher.chunk(place, objective.temperature)
        return (*_FromLogits.apply(logits, y, known, objective), is_right.sum())

    sums = [hidden_states.sum() * 0.0, *(torch.zeros((), device=hidden_states.device) for _ in range(3))]
    step = chunk_length(vocab_size, hidden_states.device)
    for start in range(0, len(hidden_states), step):
        place = slice(start, min(start + step, len(hidden_states)))
        parts = checkpoint(chunk_sums, hidden_states[place], targets[place], place, use_reentrant=False)
        sums = [total + part for total, part in zip(sums, parts, strict=True)]
    return DistillationSums(*sums)
