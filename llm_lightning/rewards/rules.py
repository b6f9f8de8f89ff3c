"""Rewards that a few lines can check."""

import re
from dataclasses import dataclass
from typing import Literal

from llm_lightning.errors import UserError
from llm_lightning.rewards.scoring import Columns, Prompt

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
MARK = "####"
"""Stands before the final answer in GSM8K's solutions."""


@dataclass
class FinalAnswer:
    """1 where the completion's final number is the right one, else 0.

    The final number is the one behind the last `####` or in the last `\\boxed{}`, else the last one. Commas between
    digits and a currency sign do not matter, and 18 equals 18.0.

    Args:
        column: holds the right answer: a number (MGSM), or a solution that ends with one (GSM8K).
    """

    column: str = "answer"

    def __call__(self, prompts: list[Prompt], completions: list[str], columns: Columns) -> list[float]:
        """See `RewardFunction`."""
        if self.column not in columns:
            raise UserError(f"FinalAnswer.column={self.column!r}: the data has the columns {', '.join(columns)}.")
        rewards = []
        for completion, answer in zip(completions, columns[self.column], strict=True):
            right = final_number(str(answer))
            if right is None:
                raise ValueError(f"column {self.column!r} holds no number: {answer!r}")
            rewards.append(float(final_number(completion) == right))
        return rewards


def final_number(text: str) -> float | None:
    """The number that a solution arrives at; None where there is none."""
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    marked = text.rpartition(MARK)[2] if MARK in text else boxed[-1] if boxed else None
    numbers = NUMBER.findall(text if marked is None else marked)
    if not numbers:
        return None
    return float((numbers[-1] if marked is None else numbers[0]).replace(",", ""))


@dataclass
class Pattern:
    """1 where a regular expression is found in the completion, else 0.

    Args:
        pattern: Python's syntax; `^` and `$` are the completion's ends.
        ignore_case: whether a and A are the same.
        whole: the expression has to fit all of the completion.
    """

    pattern: str
    ignore_case: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        try:
            compiled = re.compile(self.pattern, re.DOTALL | (re.IGNORECASE if self.ignore_case else 0))
        except re.error as error:
            raise UserError(f"Pattern.pattern={self.pattern!r} is no regular expression: {error}.") from error
        self._matches = compiled.fullmatch if self.whole else compiled.search

    def __call__(self, prompts: list[Prompt], completions: list[str], columns: Columns) -> list[float]:
        """See `RewardFunction`."""
        return [float(self._matches(completion) is not None) for completion in completions]


@dataclass
class Length:
    """1 for a completion of just the wanted length, falling linearly to 0 at none and at twice as much.

    Args:
        target: the wanted length.
        unit: what it counts.
    """

    target: int
    unit: Literal["characters", "words"] = "words"

    def __post_init__(self) -> None:
        if self.target < 1:
            raise UserError(f"Length.target={self.target} must be at least 1.")

    def __call__(self, prompts: list[Prompt], completions: list[str], columns: Columns) -> list[float]:
        """See `RewardFunction`."""
        lengths = [len(c.split() if self.unit == "words" else c) for c in completions]
        return [max(0.0, 1 - abs(length - self.target) / self.target) for length in lengths]
