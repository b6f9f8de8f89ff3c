"""The shapes that conversations and preferences come in, and how a set's shape is told from its first records."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from datamodules.errors import DataError
from datamodules.units import Record

# The fields of each shape, in the order in which the shapes are tried: conversations before single answers, since a
# set of conversations often repeats its first question in a column `prompt`.
SHAPES: dict[str, tuple[str, ...]] = {
    "messages": ("system", "messages", "tools"),
    "sharegpt": ("system", "conversations", "tools"),
    "alpaca": ("system", "history", "instruction", "input", "reasoning", "output", "tools"),
    "self-instruct": ("system", "instruction", "instances"),
    "prompt-completion": ("system", "prompt", "reasoning", "completion", "tools"),
    "question-answer": ("system", "question", "reasoning", "answer", "tools"),
}
# The same of two answers to one question, of which one is preferred. Where the question has no column of its own, the
# answers are whole conversations, which begin with it.
_OF_PAIRS = ("margin", "chosen_score", "rejected_score", "tools")
_OF_LABELLED = ("output_1", "output_2", "label", "score_1", "score_2", "margin", "tools")
PREFERENCE_SHAPES: dict[str, tuple[str, ...]] = {
    "prompt-pair": ("system", "prompt", "chosen", "rejected", *_OF_PAIRS),
    "sharegpt-pair": ("system", "conversations", "chosen", "rejected", *_OF_PAIRS),
    "messages-pair": ("system", "messages", "chosen", "rejected", *_OF_PAIRS),
    "question-pair": ("system", "question", "response_j", "response_k", *_OF_PAIRS),
    "labelled-prompt": ("system", "prompt", *_OF_LABELLED),
    "labelled-instruction": ("system", "instruction", "input", *_OF_LABELLED),
    "whole-pair": ("system", "chosen", "rejected", *_OF_PAIRS),
}
OPTIONAL = {
    "system", "history", "input", "reasoning", "tools",
    "margin", "chosen_score", "rejected_score", "score_1", "score_2",
}  # fmt: skip
# The column names that a field usually has; the first one that is filled is read.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "input": ("input", "context"),
    "output": ("output", "response"),
    "completion": ("completion", "response"),
    "answer": ("answer", "response"),
    "system": ("system", "system_prompt"),
    "reasoning": ("reasoning", "reasoning_content", "thinking"),
    "chosen_score": ("chosen_score", "score_chosen", "chosen_rating", "chosen-rating"),
    "rejected_score": ("rejected_score", "score_rejected", "rejected_rating", "rejected-rating"),
    "response_j": ("response_j", "chosen"),
    "response_k": ("response_k", "rejected"),
    "output_1": ("output_1", "response_1", "answer_1", "response_a"),
    "output_2": ("output_2", "response_2", "answer_2", "response_b"),
    "label": ("label", "preference", "winner", "choice"),
}


@dataclass(frozen=True)
class Shape:
    """What a set's records look like. Plain values, so that it can be sent.

    Attributes:
        name: one of `SHAPES` or of `PREFERENCE_SHAPES`.
        columns: the columns that are read.
        unread: the columns that are not.
    """

    name: str
    columns: tuple[str, ...]
    unread: tuple[str, ...] = ()


def detect_shape(
    records: Sequence[Record],
    columns: Mapping[str, str] | None,
    where: str,
    shapes: Mapping[str, tuple[str, ...]] = SHAPES,
) -> Shape:
    """The first of the known shapes whose required columns some record fills.

    Where no record fills them it is enough that they are there: each record's own fault is then told in its place.

    Args:
        records: the first ones that can be read.
        columns: the set's own column names by field, such as {question: frage, answer: antwort}. Only shapes that
            have all these fields are considered.
        where: the set, for messages.
        shapes: the fields of each known shape, in the order in which they are tried.

    Raises:
        DataError: there are no records, they are of no known shape, or `columns` names a field or a column that does
            not exist.
    """
    columns = columns or {}
    found = list(dict.fromkeys(str(name) for record in records for name in record))
    if not found:
        raise DataError(f"{where!r} holds no record that could be read, so that its shape is unknown")
    candidates = _candidates(columns, found, where, shapes)
    for test in (_fills, _has):
        for name in candidates:
            if any(all(test(record, field, columns) for field in _required(shapes[name])) for record in records):
                read = (column_of(record, field, columns) for field in shapes[name] for record in records)
                names = tuple(dict.fromkeys(column for column in read if column is not None))
                return Shape(name, names, tuple(column for column in found if column not in names))
    raise DataError(
        f"columns: {where!r} has the columns {_listed(found)}, which make none of the known shapes: {_known(shapes)}. "
        "Say which column is which, for example columns={question: frage, answer: antwort}"
    )


def shape_in_words(shape: Shape, shapes: Iterable[str] = SHAPES) -> str:
    """What was detected and why, for a log: `alpaca (columns instruction, output; not read: id), the first of ...`."""
    unread = f"; not read: {_listed(shape.unread)}" if shape.unread else ""
    columns = f"columns {_listed(shape.columns)}{unread}"
    return f"{shape.name} ({columns}), the first that fits of the shapes {', '.join(shapes)}"


def column_of(record: Record, field: str, columns: Mapping[str, str] | None) -> str | None:
    """The column that a field is read from: the mapped one, else of its usual names the first that is filled.

    Where none is filled, the first that is there; None: none is.
    """
    names = (columns[field],) if columns and field in columns else USUAL_NAMES.get(field, (field,))
    there = [name for name in names if name in record]
    return next((name for name in there if not is_empty(record[name])), there[0] if there else None)


def is_empty(value: Any) -> bool:
    """Whether an optional column counts as absent: null, blank text, or nothing in the list."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value == [] or value == {}


def _candidates(
    columns: Mapping[str, str], found: list[str], where: str, shapes: Mapping[str, tuple[str, ...]]
) -> list[str]:
    fields = sorted({field for fields in shapes.values() for field in fields})
    for field, column in columns.items():
        if field not in fields:
            raise DataError(f"columns: {field!r} is not a field that is known; known are: {', '.join(fields)}")
        if column not in found:
            raise DataError(
                f"columns: {where!r} has no column {column!r} (named for {field!r}); it has: {_listed(found)}"
            )
    candidates = [name for name, fields in shapes.items() if columns.keys() <= set(fields)]
    if not candidates:
        raise DataError(f"columns: no shape has all the fields {', '.join(columns)}; the shapes are: {_known(shapes)}")
    return candidates


def _required(fields: Iterable[str]) -> list[str]:
    return [field for field in fields if field not in OPTIONAL]


def _has(record: Record, field: str, columns: Mapping[str, str]) -> bool:
    return column_of(record, field, columns) is not None


def _fills(record: Record, field: str, columns: Mapping[str, str]) -> bool:
    column = column_of(record, field, columns)
    return column is not None and not is_empty(record[column])


def _known(shapes: Mapping[str, tuple[str, ...]]) -> str:
    return ", ".join(f"{name} ({' and '.join(_required(fields))})" for name, fields in shapes.items())


def _listed(names: Iterable[str]) -> str:
    return ", ".join(shorten(name, 40) for name in names)  # a table without header has texts for names
