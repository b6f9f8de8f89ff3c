"""Speculative decoding (arXiv:2211.17192) without a change of any answer.

Each position of a completion has one random number, and its token is a function of this number and of the text before
it. So a draft is right where it is the very token that is drawn there, and the answer is the one without drafts, token
for token, however the draft came about. The usual rejection of drafts keeps the distribution alone; this keeps what is
drawn from it. What differs is the rounding of a pass over several tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from llm_lightning.rollouts.sampling import Sampling

Cost: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Of forward passes over so many tokens, in tokens."""


class Drafts(NamedTuple):
    """Guesses for S slots.

    Args:
        tokens: (S, most) int64; -1 behind a slot's last one.
        counts: (S,) int64 of each slot, 0 for none.
    """

    tokens: Tensor
    counts: Tensor

    @classmethod
    def of(cls, drafts: Sequence[Sequence[int]], device: torch.device) -> "Drafts | None":
        """From lists; None where all are empty."""
        counts = [len(draft) for draft in drafts]
        if not (most := max(counts, default=0)):
            return None
        rows = [[*draft, *[-1] * (most - len(draft))] for draft in drafts]
        return cls(torch.tensor(rows).to(device), torch.tensor(counts).to(device))

    def packed(self, newest: Tensor) -> Tensor:
        """(N,) tokens that a pass reads: each slot's newest one (S,), and its draft."""
        both = torch.cat([newest[:, None], self.tokens], 1)
        return both[torch.arange(both.shape[1], device=both.device) <= self.counts[:, None]]

    def num_right(self, drawn: Tensor) -> Tensor:
        """(S,) how many tokens a slot's draft begins with that are those that were drawn, (S, most + 1)."""
        return (drawn[:, :-1] == self.tokens).long().cumprod(1).sum(1)


class Board(NamedTuple):
    """What is being written.

    Args:
        numbers: (S,) int64, the completion of each slot.
        is_over: (S,) whether it is over, though it has its slot still.
        tokens: (completions, longest) int64.
        num_tokens: (completions,) int64, how many of them are written.
        uniforms: (completions, longest) float32, the random number of each.
        cost: of a forward pass over so many tokens.
    """

    numbers: Tensor
    is_over: Tensor
    tokens: Tensor
    num_tokens: Tensor
    uniforms: Tensor
    cost: Cost


class Drafter(ABC):
    """Guesses, in one call of the sampler."""

    @abstractmethod
    def draft(self, board: Board) -> Drafts | None:
        """Before a forward pass: what it should check beside the newest tokens; None where that would not pay.

        A draft leaves room for one more token. Slots that are over get none.
        """


class Speculation(ABC):
    """The settings of drafts.

    Attributes:
        num_tokens: at most so many tokens a draft.
    """

    num_tokens: int

    @abstractmethod
    def drafter(self, network: Any, sampling: Sampling, prompts: Sequence[Tensor], num_samples: int) -> Drafter:
        """For one call of the sampler.

        Args:
            network: that writes.
            sampling: how.
            prompts: (n,) int64 each.
            num_samples: of each prompt; completion i answers prompt i // num_samples.

        Raises:
            UserError: there can be no drafts for this network.
        """

    @abstractmethod
    def check(self, tokenizer: Any, field: str) -> None:
        """Raise `UserError` for settings that cannot work.

        Args:
            tokenizer: of the network that writes; None where there is none to compare with.
            field: the setting that holds this, for messages.
        """

    def release(self) -> None:  # noqa: B027 (most have nothing to give back)
        """Give back memory; what is needed again is read again."""
