"""The options of multiple-choice questions, in the ways that data sets write them, and which of them is right."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from datamodules.records.turns import UnfitError, kind_of, text_of

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LABEL_KEYS, TEXT_KEYS = ("label", "key", "letter", "id"), ("text", "value", "content", "option")
# One column an option: A, B, C or option_a, option_b or choice1, choice2 or opa, opb.
SPREAD = re.compile(r"(?P<name>(?:option|choice|opt|op)[ _-]?)(?P<label>[a-z]|\d)", re.IGNORECASE)
MARKED = re.compile(r"\s*\(?([A-Za-z]|\d{1,2})\s*[).:]\s*")  # (A), A., A), 1:


class Option(NamedTuple):
    """An option: what it is called, what it says, and the line that it is shown in."""

    label: str
    text: str
    line: str


def options_of(value: Any) -> list[Option] | None:
    """The options in a column; None where it holds nothing of the kind.

    Known are lists of texts or numbers, which may begin with their letters; lists of objects with a label and a text;
    an object with a list of labels and one of texts, or with labels for keys; and all of them as JSON.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    pairs = _labelled(value)
    if pairs is None or len(pairs) < 2 or not all(_is_said(label) and _is_said(text) for label, text in pairs):
        return None
    return [_option(str(label).strip(), text) for label, text in pairs]


def spread_columns(names: Sequence[str]) -> list[str]:
    """The columns that hold an option each: a row of them that begins with the first letter or number."""
    rows: dict[str, dict[str, str]] = {"": {name: name for name in names if re.fullmatch("[A-Z]", name)}}
    for name in names:
        if found := SPREAD.fullmatch(name):
            rows.setdefault(found["name"].lower(), {})[found["label"].upper()] = name
    for prefix, row in rows.items():
        for labels in (LETTERS, "123456789", "0123456789"):
            count = next((i for i, label in enumerate(labels) if label not in row), len(labels))
            # Letters alone name other things too.
            if count >= (2 if prefix else 3):
                return [row[label] for label in labels[:count]]
    return []


def of_columns(record: Mapping[str, Any], columns: Sequence[str]) -> list[Option]:
    """An option of each column that is not empty, called by its place among them."""
    said = [(LETTERS[place], record[name]) for place, name in enumerate(columns) if record.get(name) not in (None, "")]
    for label, text in said:
        if not _is_said(text):
            raise UnfitError(
                f"column {columns[LETTERS.index(label)]!r} holds {kind_of(text)}, not the text of an option"
            )
    return [_option(label, text) for label, text in said]


def is_listed(options: Sequence[Option], text: str) -> bool:
    """Whether the text lists the options already, each behind its label."""
    return all(re.search(rf"{re.escape(one.label)}\s*[).:]\s*{re.escape(one.text)}", text) for one in options)


def right_option(value: Any, options: Sequence[Option], column: str) -> Option | None:
    """The option that an answer names by its label, its text, or its place, counted from 0.

    None: the answer is a text of another kind.

    Raises:
        UnfitError: it names none, or it could mean two.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    said = text_of(value, f"column {column!r}", numbers=True).strip()
    bare = re.sub(r"^\((.*)\)$|[).:]$", r"\1", said).strip()
    by_label = [one for one in options if one.label.casefold() == bare.casefold()]
    by_text = [one for one in options if said.casefold() in _ways_to_say(one)]
    by_place = [options[int(said)]] if said.isdecimal() and int(said) < len(options) else []
    # A text that is an option's is that option; a number may be either.
    found = by_label or (by_text if isinstance(value, str) else []) or list(dict.fromkeys([*by_text, *by_place]))
    if len(found) == 1:
        return found[0]
    if found:
        raise UnfitError(
            f"column {column!r} says {said[:40]!r}, which could be the option or its place; write its letter"
        )
    if len(bare) == 1 or said.isdecimal():
        labels = ", ".join(one.label for one in options)
        raise UnfitError(
            f"column {column!r} says {said[:40]!r}, which is none of the options {labels} (places count from 0)"
        )
    return None


def reply_of(given: Any, right: Option | None) -> str | None:
    """The letter of the option whose place is given; None where the answer is given as it is said."""
    said = given.strip() if isinstance(given, str) else ""
    is_place = not said or (said.isdecimal() and right is not None and said not in (right.label, right.text))
    return right.label if right is not None and is_place else None


def _ways_to_say(option: Option) -> set[str]:
    label, text = option.label.casefold(), option.text.casefold()
    return {
        text,
        option.line.casefold(),
        *(f"{mark} {text}" for mark in (f"{label}.", f"{label})", f"({label})", f"{label}:")),
    }


def _labelled(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return [(_first(one, LABEL_KEYS), _first(one, TEXT_KEYS)) for one in value]
    if isinstance(value, list) and len(value) <= len(LETTERS):
        return list(zip(LETTERS, value, strict=False))
    if not isinstance(value, dict):
        return None
    labels, texts = (
        next((value[key] for key in (f"{name}s", name) if key in value), None) for name in ("label", "text")
    )
    if isinstance(labels, list) and isinstance(texts, list) and len(labels) == len(texts):
        return list(zip(labels, texts, strict=True))
    given = [(label, text) for label, text in value.items() if text is not None]
    return given if all(len(label) <= 2 for label, _ in given) else None


def _option(label: str, value: Any) -> Option:
    text = text_of(value, "an option", numbers=True).strip()
    mark = MARKED.match(text)
    if mark and mark[1].casefold() == label.casefold():
        return Option(mark[1], text[mark.end() :].strip(), text)
    return Option(label, text, f"{label}. {text}")


def _first(value: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((value[key] for key in keys if key in value), None)


def _is_said(value: Any) -> bool:
    return (isinstance(value, str) and bool(value.strip())) or (
        isinstance(value, int | float) and not isinstance(value, bool)
    )
