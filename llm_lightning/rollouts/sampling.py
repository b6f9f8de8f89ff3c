"""From logits to tokens, by random numbers that are given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from llm_lightning.errors import UserError

Key: TypeAlias = tuple[int, ...]
"""Names the random numbers of one completion. The same key, prompt and weights give the same completion, whatever else
is written beside it; so a completion depends on neither the number of ranks nor the size of a batch, and a resumed run
needs no generator's state."""

HIGHEST_UNIFORM = 1 - 2.0**-23
"""The largest float32 whose product with a sum of probabilities stays below that sum."""


FIRST_SORTED = 128
"""Tokens among which `top_p` is looked for first: to sort a whole vocabulary takes longer than a small network does."""


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Args:
        max_new_tokens: at most so many tokens a completion, EOS included.
        temperature: divides the logits, in the update too: the policy that is trained is the one that is drawn from.
            0 takes the likeliest token.
        top_k: only the k likeliest tokens are drawn; 0 for all. What truncation leaves out the update does not know
            of: the less of it, the better.
        top_p: only the likeliest tokens that together have this probability are drawn.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def check(self, name: str) -> None:
        """Raise `UserError` for values that cannot work; `name` is the setting that holds these."""
        for field, valid, words in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0 (0: all tokens)"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not valid:
                raise UserError(f"{name}.{field}={getattr(self, field)} must be {words}.")


def uniforms(keys: Sequence[Key], count: int) -> Tensor:
    """(len(keys), count) float32 in [0, 1): a row depends on its key alone, and not on `count`."""
    rows = [np.random.default_rng(key).random(count) for key in keys]
    return torch.from_numpy(np.array(rows, np.float32)).clamp_(max=HIGHEST_UNIFORM)


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token a row, as a function of its random number: many times faster than `torch.multinomial` on CPU.

    Over the whole vocabulary by inverting the cumulative distribution; over a truncated one by the Gumbel-max trick,
    with noise that each token has of its own. Neither minds the rounding of a batch of another shape. A cumulative
    distribution in falling order would: two tokens that are about as likely change places. And from truncated
    distributions that nearly agree the same token is drawn nearly as often as can be (arXiv:2408.07978), which is what
    a draft is for.

    Args:
        logits: (S, V) float32.
        uniform: (S,) in [0, `HIGHEST_UNIFORM`].
        sampling: temperature and truncation.

    Returns:
        tokens (S,) int64, and their logprobs (S,) at the temperature, before truncation.
    """
    if sampling.temperature not in (0.0, 1.0):
        logits = logits / sampling.temperature
    logprobs = logits.log_softmax(-1)
    if sampling.temperature == 0:
        best = logprobs.max(-1)
        return best.indices, best.values
    probabilities = logprobs.exp()
    if not sampling.top_k and sampling.top_p == 1:
        tokens = _invert(probabilities, uniform)
    else:
        kept, indices = _truncate(probabilities, sampling)
        tokens = indices.gather(1, _race(kept, indices, uniform)[:, None]).squeeze(1)
    return tokens, logprobs.gather(1, tokens[:, None]).squeeze(1)


def _truncate(probabilities: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """(S, k) probabilities of the likeliest tokens in falling order, 0 for those that are left out, and the tokens."""
    if sampling.top_k:
        kept, indices = probabilities.topk(min(sampling.top_k, probabilities.shape[1]))
        total = kept.sum(-1, keepdim=True)
    else:
        total = probabilities.sum(-1, keepdim=True)
        kept, indices = _nucleus(probabilities, sampling.top_p * total, FIRST_SORTED)
    before = kept.cumsum(-1) - kept
    return kept.where(before < sampling.top_p * total, 0.0), indices


def _nucleus(probabilities: Tensor, wanted: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(S, k) the likeliest probabilities and their tokens, so many at least that a row sums to `wanted` (S, 1)."""
    vocab_size = probabilities.shape[1]
    kept, indices = probabilities.topk(min(count, vocab_size))
    if count >= vocab_size:
        return kept, indices
    short = (kept.sum(-1, keepdim=True) < wanted).squeeze(1).nonzero().squeeze(1)
    if len(short):
        more = _nucleus(probabilities[short], wanted[short], 8 * count)
        kept, indices = (functional.pad(part, (0, more[0].shape[1] - count)) for part in (kept, indices))
        kept[short], indices[short] = more
    return kept, indices


def _race(weights: Tensor, indices: Tensor, uniform: Tensor) -> Tensor:
    """(S,) the place of the token that comes first, where each (S, k) takes an exponential time at its weight's rate.

    A time is made from a hash of the row's random number and the token's id, so it is the same whatever is beside it.
    """
    bits = uniform.contiguous().view(torch.int32).long()[:, None]
    times = -((_mixed(_mixed(bits) + indices) >> 11 & 2**53 - 1).double().add_(0.5) * 2.0**-53).log_()
    return (times / weights).argmin(-1)


def _mixed(numbers: Tensor) -> Tensor:
    """SplitMix64's finalizer (Steele, Lea and Flood, 2014): int64 to int64, each bit depending on all."""
    numbers = numbers * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        numbers = (numbers ^ (numbers >> shift & 2 ** (64 - shift) - 1)) * factor
    return numbers ^ (numbers >> 31 & 2**33 - 1)


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """(S,) the first index at which the weights up to and including it exceed the uniform's share of their sum."""
    cumulative = weights.cumsum(-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp_(max=weights.shape[1] - 1)
