"""A reward for multiple-choice questions, which looks for the letter that a completion settles on."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from textwrap import shorten
from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.rewards.scoring import Columns, Prompt

BOXED = re.compile(r"\\boxed\{\s*(?:\\text\{)?\s*\(?([A-Za-z])\)?\s*\}")
SAID = re.compile(
    r"(?:answer|option|choice|respuesta|opción|opcion)(?:\s+(?:is|es|correct|correcta|final|the|la|option|opción))*"
    r"\s*[:=]?\s*[(*]*(?-i:([A-Z]))\b(?!['\u2019])",
    re.IGNORECASE,
)
# "A dog" begins with a word, not with a letter.
LEADING = re.compile(r"\s*[(*]*([A-Za-z])[)*]*(?:[.):,]|\s*$)")
RIGHT = re.compile(r"\s*\(?([A-Za-z])(?:[.):].*|\s*)", re.DOTALL)


@dataclass
class RightOption:
    """1 where the completion settles on the letter of the right option, else 0.

    The letter is the one in the last `\\boxed{}`, else behind the last "answer is", "Answer:" or "respuesta es",
    else the one that the completion begins with ("B", "(B)", "B. dog").

    Args:
        column: holds the right letter ("B", "(B)", "B. dog"), or the place of the option, counted from 0.
    """

    column: str = "answer"

    def __call__(self, prompts: list[Prompt], completions: list[str], columns: Columns) -> list[float]:
        """See `RewardFunction`."""
        if self.column not in columns:
            raise UserError(f"RightOption.column={self.column!r}: the data has the columns {', '.join(columns)}.")
        rewards = []
        for completion, answer in zip(completions, columns[self.column], strict=True):
            if (right := right_letter(answer)) is None:
                raise ValueError(self._unreadable(answer))
            rewards.append(float(chosen_letter(completion) == right))
        return rewards

    def check_record(self, columns: Mapping[str, Any]) -> str | None:
        """See `RecordCheck`."""
        if self.column not in columns:
            return f"RightOption.column={self.column!r}: the record has the columns {', '.join(columns) or '(none)'}"
        return None if right_letter(columns[self.column]) else self._unreadable(columns[self.column])

    def _unreadable(self, answer: Any) -> str:
        return f"RightOption: column {self.column!r} holds neither a letter nor a place: {shorten(repr(answer), 80)}"


def chosen_letter(completion: str) -> str | None:
    """The letter, in upper case, that a completion settles on; None: none."""
    found = BOXED.findall(completion)[-1:] or SAID.findall(completion)[-1:]
    leading = LEADING.match(completion)
    letter = found[0] if found else leading[1] if leading else None
    return letter.upper() if letter else None


def right_letter(answer: Any) -> str | None:
    """The letter that the data names as the right one; None: it names none."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return ascii_uppercase[answer] if 0 <= answer < len(ascii_uppercase) else None
    found = RIGHT.fullmatch(answer) if isinstance(answer, str) else None
    return found[1].upper() if found else None
