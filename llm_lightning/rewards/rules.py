"""Rewards that a few lines can check."""

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from textwrap import shorten
from typing import Any, Literal

from llm_lightning.errors import UserError
from llm_lightning.rewards.final_number import final_number
from llm_lightning.rewards.numbers import DecimalMark, Number
from llm_lightning.rewards.scoring import Columns, Prompt


@dataclass
class FinalAnswer:
    """1 where the completion's final number is the right one, else 0.

    The final number is the one in the last `\\boxed{}` or behind the last `####`, else the last one. Numbers are
    compared exactly, however they are written (see `numbers.py`): 18 is 18.0, 3/4 is 0.75, 50% is 50 and 0.5. An answer
    that is more than one plain number (`2\\sqrt{3}`, `(1, 2)`) is none.

    Args:
        column: holds the right answer: a number (MGSM), or a solution that ends with one (GSM8K).
        decimal_mark: what parts decimals from the whole in a number that does not tell. None: 1,000 is a thousand;
            1.000 is right where the answer is one and where it is a thousand, as Spanish writes it, but is one where it
            is the right answer itself.
    """

    column: str = "answer"
    decimal_mark: DecimalMark | None = None
    _warned: bool = field(default=False, init=False, repr=False)

    def __call__(self, prompts: list[Prompt], completions: list[str], columns: Columns) -> list[float]:
        """See `RewardFunction`."""
        if self.column not in columns:
            raise UserError(f"FinalAnswer.column={self.column!r}: the data has the columns {', '.join(columns)}.")
        rewards = []
        for completion, answer in zip(completions, columns[self.column], strict=True):
            right = self._right(answer)
            if right is None:
                raise ValueError(self._unreadable(answer))
            given = final_number(completion, self.decimal_mark)
            rewards.append(float(given is not None and given.matches(right)))
        return rewards

    def check_record(self, columns: Mapping[str, Any]) -> str | None:
        """See `RecordCheck`."""
        if self.column not in columns:
            return f"FinalAnswer.column={self.column!r}: the record has the columns {', '.join(columns) or '(none)'}"
        answer = columns[self.column]
        if (right := self._right(answer)) is None:
            return self._unreadable(answer)
        if len(right.values) > 1 and not self._warned:
            self._warned = True
            first, second = map(float, right.values)
            warnings.warn(
                f"FinalAnswer: the right answer {answer!r} is taken for {first:g}. Where {second:g} is meant, set "
                "decimal_mark: ','; '.' says that it is not.",
                stacklevel=2,
            )
        return None

    def _right(self, answer: Any) -> Number | None:
        if isinstance(answer, (int, float, Decimal)) and not isinstance(answer, bool):
            return Number((Fraction(str(answer)),)) if math.isfinite(answer) else None
        return final_number(answer, self.decimal_mark) if isinstance(answer, str) else None

    def _unreadable(self, answer: Any) -> str:
        shown = shorten(repr(answer), 80)
        return f"FinalAnswer: column {self.column!r} holds no number, or more than one plain number: {shown}"


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
