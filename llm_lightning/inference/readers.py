"""What an answer arrives at, so that equal answers can be counted."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from llm_lightning.errors import UserError
from llm_lightning.rewards.final_number import final_number
from llm_lightning.rewards.numbers import DecimalMark
from llm_lightning.rewards.right_option import chosen_letter

AnswerReader: TypeAlias = Callable[[str], str | None]
"""From a completion to what it arrives at; None: nothing. Equal texts are equal answers."""


@dataclass
class FinalNumber:
    """The last number, as `FinalAnswer` reads it: 18, 18.0 and $18 are one answer.

    Args:
        decimal_mark: see `FinalAnswer`.
    """

    decimal_mark: DecimalMark | None = None

    def __call__(self, completion: str) -> str | None:
        """See `AnswerReader`."""
        found = final_number(completion, self.decimal_mark)
        return None if found is None else str(found.values[0])


@dataclass
class Option:
    """The letter of the option that a completion settles on, as `RightOption` reads it."""

    def __call__(self, completion: str) -> str | None:
        """See `AnswerReader`."""
        return chosen_letter(completion)


@dataclass
class AnswerPattern:
    r"""What a regular expression finds last, without regard to case and to blanks around it.

    Args:
        pattern: Python's syntax. Its first group is the answer, where it has one: `answer is (\w+)`.
    """

    pattern: str

    def __post_init__(self) -> None:
        try:
            self._find = re.compile(self.pattern, re.DOTALL | re.IGNORECASE).finditer
        except re.error as error:
            raise UserError(f"AnswerPattern.pattern={self.pattern!r} is no regular expression: {error}.") from error

    def __call__(self, completion: str) -> str | None:
        """See `AnswerReader`."""
        found = [match.group(match.re.groups and 1) for match in self._find(completion)]
        return found[-1].strip().casefold() if found and found[-1] is not None else None
