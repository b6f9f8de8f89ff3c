"""Next-token losses that never hold the logits of a whole batch.

For N tokens and a vocabulary of V, logits take N x V numbers, and a plain cross-entropy keeps two or three copies of
them: at V = 49,152 that is more memory than the network itself. Here the head and the loss are taken together, chunk
by chunk, and the gradients with respect to the hidden states and the head's weight are computed in the forward pass,
while a chunk's logits are at hand. The idea is known from Liger-Kernel and torch's own `linear_cross_entropy`; ours
runs the same under torch.compile, on torch 2.11, and has the z-loss and the softcap in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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

IGNORE_INDEX = -100


@dataclass(frozen=True)
class HeadScaling:
    """What some architectures do to logits after the head.

    Args:
        scale: factor on the logits (Cohere's `logit_scale`, the inverse of Granite's `logits_scaling`).
        softcap: c in c * tanh(logits / c) (Gemma's `final_logit_softcapping`), None for none.
    """

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits (N, V) as the architecture means them."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def slope(self, logits: Tensor) -> Tensor | float:
        """The derivative of `logits` (N, V), as the architecture means them, by what the head gave."""
        return self.scale if self.softcap is None else self.scale * (1 - (logits / self.softcap).square())


class TokenLoss(NamedTuple):
    """Sums over the trained tokens.

    Args:
        loss: scalar to back-propagate once, z-loss and smoothing included.
        nll: scalar, the plain negative log-likelihood in nats, without gradient.
        correct: scalar, how many tokens the network would have chosen itself, without gradient. Of equal logits, which
            are not rare in bfloat16, it chooses the first.
        balance: scalar without gradient, what of the loss balances a mixture's load; None where nothing does.
    """

    loss: Tensor
    nll: Tensor
    correct: Tensor
    balance: Tensor | None = None


def next_token_targets(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which positions have a loss, and their targets: only these need the head.

    Args:
        labels: (B, T), not shifted, -100 where not trained.

    Returns:
        positions: (N,) indices into the flattened (B * T) hidden states: those *before* a trained label.
        targets: (N,) the labels they have to predict.
    """
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).flatten()
    positions = (shifted != IGNORE_INDEX).nonzero().squeeze(1)
    return positions, shifted[positions]


def hidden_token_targets(labels: Tensor) -> tuple[Tensor, Tensor]:
    """As `next_token_targets`, for labels that are told where they stand: of masked tokens."""
    flat = labels.flatten()
    positions = (flat != IGNORE_INDEX).nonzero().squeeze(1)
    return positions, flat[positions]


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of `hidden @ weight.T`; gradients are ready when the forward pass ends."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        trained_weight: Tensor,
        targets: Tensor,
        z_loss: float,
        label_smoothing: float,
        scaling: HeadScaling,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        count, weight = len(hidden), trained_weight.to(hidden.dtype)
        hidden, targets = padded(hidden), padded(targets)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=sum_dtype(weight)) if needs_weight else None
        nll = hidden.new_zeros((), dtype=torch.float32)
        correct = torch.zeros_like(nll)
        penalty = hidden.new_zeros((), dtype=torch.float32)
        step = chunk_length(len(weight), hidden.device)
        for start in range(0, len(hidden), step):
            h, y = hidden[start : start + step], targets[start : start + step]
            losses, is_right, lse, smoothing, grad = _chunk(h, weight, y, z_loss, label_smoothing, scaling)
            own = slice(0, count - start)  # padding has no loss; its states are zero, so it moves no weight
            nll += losses[own].sum()
            correct += is_right[own].sum()
            if z_loss:
                penalty += z_loss * lse[own].square().sum()
            if smoothing is not None:
                penalty += smoothing[own].sum()
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[start : start + step])
            if grad_weight is not None:
                add_product(grad_weight, grad.t(), h)
        grad_hidden = None if grad_hidden is None else grad_hidden[:count]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = trained_weight.dtype
        ctx.mark_non_differentiable(nll, correct)
        return nll + penalty, nll, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *ready_gradients(ctx, grad_loss), *(None,) * 4


def _chunk(
    hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, label_smoothing: float, scaling: HeadScaling
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """One chunk: losses (N,), whether each token is guessed right (N,), log-sum-exps (N,), what smoothing adds to the
    losses (N,), and d(loss) / d(head output) (N, V), written over its logits.
    """
    logits = scaling(hidden @ weight.t()).float()
    slope = scaling.slope(logits)
    target_logits = logits.gather(1, targets[:, None]).squeeze(1)
    smoothing = label_smoothing * (target_logits - logits.mean(dim=-1)) if label_smoothing else None
    highest, choice = highest_logits(logits)
    is_right = choice.squeeze(1) == targets
    exps = logits.sub_(highest).exp_()
    sums = exps.sum(dim=-1)
    lse = highest.squeeze(1) + sums.log()
    grad = exps.mul_(((1 + 2 * z_loss * lse) / sums)[:, None])
    if label_smoothing:
        grad -= label_smoothing / len(weight)
    grad[torch.arange(len(targets), device=targets.device), targets] -= 1 - label_smoothing
    if scaling != HeadScaling():
        grad *= slope
    return lse - target_logits, is_right, lse, smoothing, grad.to(hidden.dtype)


def linear_cross_entropy(
    hidden_states: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    scaling: HeadScaling = HeadScaling(),
) -> TokenLoss:
    """Summed next-token loss of a bias-free linear head, with one chunk of logits in memory at a time.

    Args:
        hidden_states: (N, H), the states that predict `targets`.
        weight: (V, H), the head's weight.
        targets: (N,) token ids; every one counts (select trained positions first: `next_token_targets`).
        z_loss: factor on log(Z)^2, which keeps logits from drifting (PaLM, arXiv:2204.02311, uses 1e-4).
        label_smoothing: share of each target that is spread over the whole vocabulary (arXiv:1512.00567).
        scaling: what the architecture does to its logits.
    """
    if torch.is_autocast_enabled(hidden_states.device.type):
        hidden_states = hidden_states.to(torch.get_autocast_dtype(hidden_states.device.type))
    return TokenLoss(*_LinearCrossEntropy.apply(hidden_states, weight, targets, z_loss, label_smoothing, scaling))


def head_cross_entropy(
    hidden_states: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    vocab_size: int,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> TokenLoss:
    """The same for any head (with a bias, an adapter, quantized): chunks are recomputed in the backward pass.

    Args:
        hidden_states: (N, H).
        head: maps (n, H) to logits (n, V), with all that the architecture does to them.
        targets: (N,) token ids.
        vocab_size: V, for the size of a chunk.
        z_loss, label_smoothing: as in `linear_cross_entropy`.
    """

    def chunk_loss(h: Tensor, y: Tensor) -> TokenLoss:
        with own_casts(h.device):
            logits = head(h).float()
        nll = F.cross_entropy(logits, y, reduction="sum")
        loss = F.cross_entropy(logits, y, reduction="sum", label_smoothing=label_smoothing) if label_smoothing else nll
        if z_loss:
            loss = loss + z_loss * logits.logsumexp(dim=-1).square().sum()
        return TokenLoss(loss, nll.detach(), (highest_logits(logits)[1].squeeze(1) == y).sum())

    loss = hidden_states.sum() * 0.0
    nll = torch.zeros((), device=hidden_states.device)
    correct = torch.zeros_like(nll)
    step = chunk_length(vocab_size, hidden_states.device)
    for start in range(0, len(hidden_states), step):
        h, y = hidden_states[start : start + step], targets[start : start + step]
        chunk = checkpoint(chunk_loss, h, y, use_reentrant=False)
        loss, nll, correct = loss + chunk.loss, nll + chunk.nll, correct + chunk.correct
    return TokenLoss(loss, nll, correct)


class TokenLogprobs(NamedTuple):
    """Of each token, with gradient.

    Args:
        logprobs: (N,) float32, of the targets.
        entropies: (N,) float32, of the whole distribution, in nats; zeros where they were not asked for.
    """

    logprobs: Tensor
    entropies: Tensor


def head_logprobs(
    hidden_states: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    vocab_size: int,
    *,
    with_entropies: bool = True,
) -> TokenLogprobs:
    """Log-probabilities of single tokens; a chunk's logits are recomputed in the backward pass.

    Args:
        hidden_states, head, targets, vocab_size: as in `head_cross_entropy`.
        with_entropies: they cost about as much as the logprobs.
    """

    def chunk_logprobs(h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with own_casts(h.device):
            logprobs = head(h).float().log_softmax(-1)
        drawn = logprobs.gather(1, y[:, None]).squeeze(1)
        return drawn, torch.special.entr(logprobs.exp()).sum(-1) if with_entropies else torch.zeros_like(drawn)

    count, step = len(targets), chunk_length(vocab_size, hidden_states.device)
    hidden_states, targets = padded(hidden_states), padded(targets)
    parts = [
        checkpoint(chunk_logprobs, hidden_states[i : i + step], targets[i : i + step], use_reentrant=False)
        for i in range(0, len(targets), step)
    ] or [(hidden_states.sum(-1).float(),) * 2]
    logprobs, entropies = (torch.cat(part)[:count] for part in zip(*parts, strict=True))
    return TokenLogprobs(logprobs, entropies)
