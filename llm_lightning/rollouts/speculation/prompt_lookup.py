"""Drafts from the text itself: what followed its last tokens when they stood in it before."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from llm_lightning.errors import UserError
from llm_lightning.rollouts.sampling import Sampling
from llm_lightning.rollouts.speculation.budget import Rates, allot
from llm_lightning.rollouts.speculation.contract import Board, Drafter, Drafts, Speculation
from llm_lightning.rollouts.speculation.reading import Readings

START = 0.4
"""How often the token after a match is right, before any was seen."""


class PromptLookup(Speculation):
    """Prompt lookup decoding (https://github.com/apoorvumang/prompt-lookup-decoding): for texts that quote their prompt
    or repeat themselves. It costs next to nothing, so guesses are made even where none is checked, and drafts begin as
    soon as these turn out right.

    Args:
        num_tokens: at most so many tokens a draft; how many is decided by how often they are right.
        ngram: a match of so many last tokens is looked for, then a shorter one. The latest is taken.
    """

    def __init__(self, num_tokens: int = 16, ngram: int = 3) -> None:
        self.num_tokens, self.ngram = num_tokens, ngram

    def check(self, tokenizer: Any, field: str) -> None:
        """See `Speculation`."""
        for name in ("num_tokens", "ngram"):
            if getattr(self, name) < 1:
                raise UserError(f"{field}.{name}={getattr(self, name)} must be at least 1.")

    def drafter(self, network: Any, sampling: Sampling, prompts: Sequence[Tensor], num_samples: int) -> Drafter:
        """See `Speculation`."""
        return _Lookup(self, prompts, num_samples)


class _Lookup(Drafter):
    def __init__(self, settings: PromptLookup, prompts: Sequence[Tensor], num_samples: int) -> None:
        self.settings, self.rates = settings, Rates(settings.ngram + 1, START)
        self.readings = Readings(prompts, num_samples, self.rates)

    def draft(self, board: Board) -> Drafts | None:
        readings = self.readings.update(board)
        rates, limits = [0.0] * len(readings), [0] * len(readings)
        for slot, reading in enumerate(readings):
            if reading is None:
                continue
            count = min(self.settings.num_tokens, reading.num_left - 1)
            length, guess = continuation(reading.text, self.settings.ngram, count)
            reading.hold(guess, length)
            rates[slot], limits[slot] = self.rates.of(reading.tally, length), len(guess)
        counts = allot(rates, limits, len(self.readings.by_number), board.cost)
        drafts = [[] if one is None else one.guess[:n] for one, n in zip(readings, counts, strict=True)]
        return Drafts.of(drafts, board.numbers.device)


def continuation(text: np.ndarray, ngram: int, count: int) -> tuple[int, list[int]]:
    """What followed the last tokens of a text (n,) where they stood before.

    Returns:
        How many of them stood there, at most `ngram`, and `count` tokens; 0 and none where there is no match. Tokens
        that would come from beyond the end are those of the guess itself, so that a loop goes on.
    """
    ends = (text[:-1] == text[-1]).nonzero()[0]
    if not len(ends) or count < 1:
        return 0, []
    length = 1
    while length < ngram and length < len(text):
        longer = ends[ends >= length]
        longer = longer[text[longer - length] == text[-1 - length]]
        if not len(longer):
            break
        ends, length = longer, length + 1
    return length, np.resize(text[ends[-1] + 1 :][:count], count).tolist()
