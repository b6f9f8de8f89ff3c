"""What a drafter knows of the completions: their texts so far, and what became of its guesses."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from llm_lightning.rollouts.speculation.budget import Rates, Tally
from llm_lightning.rollouts.speculation.contract import Board


class Reading:
    """A completion.

    Args:
        prompt: (n,) its prompt.
        longest: tokens that the completion may have.
        tally: see `Rates`.
    """

    def __init__(self, prompt: np.ndarray, longest: int, tally: Tally) -> None:
        self.room = np.concatenate([prompt, np.zeros(longest, prompt.dtype)])
        self.tally = tally
        self.num_prompt, self.length = len(prompt), len(prompt)
        self.guess: list[int] = []
        self.guess_kind, self.guess_at, self.num_right = 0, 0, 0

    @property
    def text(self) -> np.ndarray:
        """Prompt and completion so far."""
        return self.room[: self.length]

    @property
    def num_left(self) -> int:
        """Tokens that may still be written."""
        return len(self.room) - self.length

    def read(self, tokens: np.ndarray) -> None:
        """Its tokens so far."""
        self.length = self.num_prompt + len(tokens)
        self.room[self.num_prompt : self.length] = tokens

    def learn(self, rates: Rates) -> None:
        """Compare the guess with what was written since, whether it was checked in a pass or not."""
        came = self.room[self.guess_at : min(self.length, self.guess_at + len(self.guess))]
        right = came == np.array(self.guess[: len(came)], came.dtype)
        missed = not bool(right.all())
        self.num_right = int(right.argmin()) if missed else len(came)
        if len(came):
            rates.add(self.tally, self.guess_kind, self.num_right, missed)

    def hold(self, guess: list[int], kind: int) -> None:
        """Remember a guess of what comes next."""
        self.guess, self.guess_kind, self.guess_at = guess, kind, self.length


class Readings:
    """All completions that have slots now.

    Args:
        prompts: see `Speculation.drafter`.
        num_samples: see there.
        rates: what is learned from all guesses.
    """

    def __init__(self, prompts: Sequence[Tensor], num_samples: int, rates: Rates) -> None:
        self.prompts, self.num_samples, self.rates = prompts, num_samples, rates
        self.by_number: dict[int, Reading] = {}

    def update(self, board: Board) -> list[Reading | None]:
        """Read on, and learn; of each slot, None where it is over."""
        numbers, over = board.numbers.tolist(), board.is_over.tolist()
        lengths = board.num_tokens[board.numbers].tolist()
        tokens = board.tokens[board.numbers, : max(lengths)].cpu().numpy()
        longest = board.tokens.shape[1]
        former, self.by_number = self.by_number, {}
        for slot, number in enumerate(numbers):
            if over[slot]:
                continue
            if (reading := former.get(number)) is None:
                prompt = self.prompts[number // self.num_samples].cpu().numpy()
                reading = Reading(prompt, longest, self.rates.own())
            reading.read(tokens[slot, : lengths[slot]])
            reading.learn(self.rates)
            self.by_number[number] = reading
        return [self.by_number.get(number) for number in numbers]
