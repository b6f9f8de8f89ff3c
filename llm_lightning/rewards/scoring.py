"""Calls rewards and distrusts what they return."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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


class Scores(list[float]):
    """One number for each completion, with others to be logged beside it.

    What a `RewardFunction` returns that names these others in an attribute `parts`: all ranks have to know them, also
    one without completions.

    Args:
        values: the rewards.
        parts: by name one number for each completion.
    """

    def __init__(self, values: Sequence[float], parts: Mapping[str, Sequence[float]]) -> None:
        super().__init__(values)
        self.parts = parts


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
        every = [function for reward in self.rewards.values() for function in with_members(reward.function)]
        return [function for function in every if callable(getattr(function, "check_record", None))]


def with_members(function: RewardFunction) -> Iterator[Any]:
    """A reward, and those that it asks itself."""
    yield function
    for member in getattr(function, "members", ()):
        yield from with_members(member)


def check_function(function: RewardFunction) -> None:
    """Let a reward, and those that it asks itself, find a user's mistakes; raises `UserError`."""
    for each in with_members(function):
        if callable(check := getattr(each, "check", None)):
            check()


def prepare_rewards(rewards: Mapping[str, Reward], folder: Path | None, tell: Callable[[str], Any]) -> None:
    """Let rewards, and those that they ask themselves, do what has to be done before they are asked.

    A reward takes part by a method `prepare(folder, tell)`.

    Args:
        rewards: by name.
        folder: that each may have a folder of its own in; None: nothing is kept.
        tell: is told what a user should know.
    """
    for name, reward in rewards.items():
        for number, function in enumerate(with_members(reward.function)):
            if callable(prepare := getattr(function, "prepare", None)):
                prepare(folder and folder / (f"{name}-{number}" if number else name), tell)


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
    """What each reward gives to each completion, unweighted, and the parts of `Scores` as `NAME/PART`.

    Args:
        rewards: by name.
        prompts, completions, columns: see `RewardFunction`.
        as_written: the completions with their special tokens, for those rewards that want them.

    Raises:
        RewardError: one raised an exception, or returned another count, or something that is no finite number.
    """
    scores: dict[str, list[float]] = {}
    for name, reward in rewards.items():
        names = getattr(reward.function, "parts", ())
        texts = as_written if reward.keep_special_tokens and as_written is not None else completions
        values = Scores([], dict.fromkeys(names, ()))
        if completions:
            values = score_alone(name, reward.function, prompts, texts, columns)
        if set(names) != set(values.parts):
            raise RewardError(f"Reward {name!r} has the parts {list(names)}, and returned {list(values.parts)}.")
        scores |= {name: list(values)} | {f"{name}/{part}": list(values.parts[part]) for part in names}
    return scores


def score_alone(
    name: str, function: RewardFunction, prompts: list[Prompt], completions: list[str], columns: Columns
) -> Scores:
    """What one reward gives; raises as `score` does."""
    try:
        values = function(prompts, completions, columns)
    except UserError:
        raise
    except Exception as error:
        raise _blame(name, function, prompts, completions, columns, error) from error
    parts = values.parts if isinstance(values, Scores) else {}
    checked = {part: _checked(f"{name}/{part}", numbers, prompts, completions) for part, numbers in parts.items()}
    return Scores(_checked(name, values, prompts, completions), checked)


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
