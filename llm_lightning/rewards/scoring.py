"""Calls rewards and distrusts what they return."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, TypeAlias

from llm_lightning.errors import UserError

Prompt: TypeAlias = str | list[dict[str, Any]]
"""A text, or the messages of a conversation, as the data has it."""

Columns: TypeAlias = dict[str, list[Any]]
"""What else the data has of each completion's prompt, by name; None where a record has not the column."""

RewardFunction: TypeAlias = Callable[[list[Prompt], list[str], Columns], Sequence[float]]


class RewardError(UserError):
    """A reward failed, or returned what is no reward."""


@dataclass
class Reward:
    """A reward and what it counts.

    Args:
        function: called with prompts, completions and columns, returns one number for each completion: a class whose
            instances can be called, by `class_path`, or the import path of a function.
        weight: its factor in the reward that is trained on. With 0 it is only logged: a held-out reward.
        keep_special_tokens: whether it sees completions with the special tokens that the policy wrote, such as the end
            of its turn, or `<think>` where the vocabulary calls that special. Without, as rules over texts expect,
            `FinalAnswer` and `Pattern` do not have to know which tokenizer wrote.
    """

    function: RewardFunction
    weight: float = 1.0
    keep_special_tokens: bool = False


@dataclass(frozen=True)
class RecordCheck:
    """Finds records whose completions could not be judged, before a model has written any.

    A reward takes part by a method `check_record(columns)`: why a record with these columns is of no use to it, None
    where it is.

    Args:
        rewards: by name.
    """

    rewards: Mapping[str, Reward]

    def __call__(self, columns: Mapping[str, Any]) -> str | None:
        """The first reason that a reward has against a record; None where none has any."""
        for reward in self._taking_part():
            if (reason := reward.check_record(columns)) is not None:
                return reason
        return None

    @property
    def key(self) -> str:
        """Names what is looked at: other settings, another key."""
        return " ".join(map(_settings, self._taking_part()))

    def _taking_part(self) -> list[Any]:
        return [r.function for r in self.rewards.values() if callable(getattr(r.function, "check_record", None))]


def _settings(function: Any) -> str:
    """Class and public settings; without addresses in memory, which are others in each run."""
    shown = {name: value for name, value in getattr(function, "__dict__", {}).items() if not name.startswith("_")}
    return re.sub(r" at 0x[0-9a-f]+", "", f"{type(function).__module__}.{type(function).__qualname__} {shown}")


def score(
    rewards: Mapping[str, Reward],
    prompts: list[Prompt],
    completions: list[str],
    columns: Columns,
    as_written: list[str] | None = None,
) -> dict[str, list[float]]:
    """What each reward gives to each completion, unweighted.

    Args:
        rewards: by name.
        prompts, completions, columns: see `RewardFunction`.
        as_written: the completions with their special tokens, for those rewards that want them.

    Raises:
        RewardError: one raised an exception, or returned another count, or something that is no finite number.
    """
    scores: dict[str, list[float]] = {}
    if not completions:
        return {name: [] for name in rewards}
    for name, reward in rewards.items():
        texts = as_written if reward.keep_special_tokens and as_written is not None else completions
        try:
            values = reward.function(prompts, texts, columns)
        except UserError:
            raise
        except Exception as error:
            raise _blame(name, reward.function, prompts, texts, columns, error) from error
        scores[name] = _checked(name, values, prompts, texts)
    return scores


def _checked(name: str, values: Any, prompts: list[Prompt], completions: list[str]) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise RewardError(f"Reward {name!r} must return a list of numbers, not {shorten(repr(values), 80)}.") from error
    if len(numbers) != len(completions):
        raise RewardError(f"Reward {name!r} returned {len(numbers)} numbers for {len(completions)} completions.")
    for number, prompt, completion in zip(numbers, prompts, completions, strict=True):
        if not math.isfinite(number):
            raise RewardError(f"Reward {name!r} returned {number} for {_in_words(prompt, completion)}.")
    return numbers


def _blame(
    name: str,
    function: RewardFunction,
    prompts: list[Prompt],
    completions: list[str],
    columns: Columns,
    error: Exception,
) -> RewardError:
    """Which sample it was: each is tried alone."""
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        try:
            function([prompt], [completion], {column: values[i : i + 1] for column, values in columns.items()})
        except Exception as alone:
            return RewardError(
                f"Reward {name!r} raised {type(alone).__name__}: {alone} for {_in_words(prompt, completion)}; columns: "
                f"{shorten(repr({column: values[i] for column, values in columns.items()}), 200)}."
            )
    return RewardError(
        f"Reward {name!r} raised {type(error).__name__}: {error} for a batch of {len(completions)} completions, but "
        "for none of them alone."
    )


def _in_words(prompt: Prompt, completion: str) -> str:
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content"))
    return f"the completion {shorten(repr(completion), 120)} of the prompt {shorten(repr(text), 120)}"
