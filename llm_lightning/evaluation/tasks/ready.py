"""What the ready tasks of `configs/tasks` ask of Python: options, and IFEval's instructions."""

from collections.abc import Iterable, Sequence
from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.rewards.instructions import CHECKS

NOT_CHECKED = {"language:response_language"}
"""Instructions that are left out: to know a language takes a model."""


def choices(doc: dict[str, Any]) -> list[str]:
    """The options of a question: a list, or one text with a line for each."""
    given = doc["choices"]
    options = given.get("text") if isinstance(given, dict) else given.splitlines() if isinstance(given, str) else given
    if not isinstance(options, list) or len(options) < 2 or not all(str(option).strip() for option in options):
        raise UserError(f"local_multiple_choice: choices={given!r} must be a list of two options or more.")
    return [str(option) for option in options]


def right_choice(doc: dict[str, Any]) -> int:
    """The number of the right option, from its number (counted from 0), its letter or its text."""
    options, given = choices(doc), doc["answer"]
    text = str(given).strip()
    if text in options:
        return options.index(text)
    if len(text) == 1 and text.isalpha():
        number = ord(text.upper()) - ord("A")
    else:
        number = int(text) if text.isdecimal() else -1
    if not 0 <= number < len(options):
        raise UserError(
            f"local_multiple_choice: answer={given!r} is neither a number from 0 to {len(options) - 1}, nor the letter "
            f"or the text of one of the options {options}."
        )
    return number


def instructions_followed(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """IFEval's four scores of an answer: all instructions or each, as it is or leniently.

    Lenient: an opening or closing line and stars of Markdown do no harm.
    """
    pairs = [
        (_check(name), arguments or {})
        for name, arguments in zip(doc["instruction_id_list"], doc["kwargs"], strict=True)
        if name not in NOT_CHECKED
    ]
    text = results[0]
    strict = [bool(text.strip()) and bool(check(text, arguments)) for check, arguments in pairs]
    variants = [each for each in _variants(text) if each.strip()]
    loose = [any(check(each, arguments) for each in variants) for check, arguments in pairs]
    scores: dict[str, Any] = {"all_instructions": float(all(strict)), "all_instructions_loose": float(all(loose))}
    if pairs:
        scores |= {"each_instruction": strict, "each_instruction_loose": loose}
    return scores


def _check(name: str) -> Any:
    if name not in CHECKS:
        raise UserError(f"local_ifeval: there is no check for {name!r}; there are: {', '.join(CHECKS)}.")
    return CHECKS[name]


def _variants(text: str) -> Iterable[str]:
    lines = text.split("\n")
    pieces = [text, "\n".join(lines[1:]).strip(), "\n".join(lines[:-1]).strip(), "\n".join(lines[1:-1]).strip()]
    return [*pieces, *(piece.replace("*", "") for piece in pieces)]


def mean_of_lists(items: Sequence[Sequence[bool]]) -> float:
    """The mean over all entries of all items."""
    flat = [entry for item in items for entry in item]
    return sum(flat) / len(flat)
