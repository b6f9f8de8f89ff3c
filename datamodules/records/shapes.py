"""The shapes that conversations and preferences come in, and how a set's shape is told from its first records."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import TypeAlias

from datamodules.errors import DataError
from datamodules.records.options import options_of, spread_columns
from datamodules.sources.units import Record, is_empty

Columns: TypeAlias = Mapping[str, str | list[str]]
"""The set's own column names by field; several columns are read as one, in their order."""

# What may stand before and below the text that asks.
_ASKED, _BELOW = ("system", "history"), ("input", "context", "options")
_CHOICE = ("reasoning", "correct", "tools")
# The fields of each shape, in the order in which the shapes are tried: conversations before single replies, since a
# set of conversations often repeats its first question in a column `prompt`.
SHAPES: dict[str, tuple[str, ...]] = {
    "messages": ("system", "messages", "tools"),
    "sharegpt": ("system", "conversations", "tools"),
    "alpaca": (*_ASKED, "instruction", *_BELOW, "reasoning", "output", "tools"),
    "self-instruct": ("system", "instruction", "instances"),
    "instruction-choice": (*_ASKED, "instruction", *_BELOW, *_CHOICE),
    "prompt-completion": (*_ASKED, "prompt", *_BELOW, "reasoning", "completion", "tools"),
    "prompt-choice": (*_ASKED, "prompt", *_BELOW, *_CHOICE),
    "question-choice": (*_ASKED, "question", *_BELOW, *_CHOICE),
    "question-answer": (*_ASKED, "question", *_BELOW, "reasoning", "answer", "tools"),
    "input-output": (*_ASKED, "input", "context", "options", "reasoning", "output", "tools"),
}
# The same of two responses to one question, of which one is preferred. Where the question has no column of its own, the
# responses are whole conversations, which begin with it.
_OF_PAIRS = ("margin", "chosen_score", "rejected_score", "tools")
_OF_LABELLED = ("output_1", "output_2", "label", "score_1", "score_2", "margin", "tools")
PAIR_SHAPES: dict[str, tuple[str, ...]] = {
    "prompt-pair": (*_ASKED, "prompt", *_BELOW, "chosen", "rejected", *_OF_PAIRS),
    "sharegpt-pair": ("system", "conversations", "chosen", "rejected", *_OF_PAIRS),
    "messages-pair": ("system", "messages", "chosen", "rejected", *_OF_PAIRS),
    "question-pair": (*_ASKED, "question", *_BELOW, "chosen", "rejected", *_OF_PAIRS),
    "instruction-pair": (*_ASKED, "instruction", *_BELOW, "chosen", "rejected", *_OF_PAIRS),
    "input-pair": (*_ASKED, "input", "context", "options", "chosen", "rejected", *_OF_PAIRS),
    "labelled-prompt": (*_ASKED, "prompt", *_BELOW, *_OF_LABELLED),
    "labelled-instruction": (*_ASKED, "instruction", *_BELOW, *_OF_LABELLED),
    "whole-pair": ("system", "chosen", "rejected", *_OF_PAIRS),
    **{f"{main}-choice": SHAPES[f"{main}-choice"] for main in ("instruction", "prompt", "question")},
}
# A single reply, and whether it is desirable.
SINGLE_SHAPES: dict[str, tuple[str, ...]] = {
    f"{main}-single": (*SHAPES[name], "desirable")
    for main, name in {
        "messages": "messages", "sharegpt": "sharegpt", "instruction": "alpaca", "prompt": "prompt-completion",
        "question": "question-answer", "input": "input-output",
    }.items()
}  # fmt: skip
# Single replies come last: a column that labels them may be the right option's or the better response's, too.
PREFERENCE_SHAPES: dict[str, tuple[str, ...]] = {**PAIR_SHAPES, **SINGLE_SHAPES}
# Prompts without any response; those of the shapes above come first, so that their prompts are the same in all stages.
PROMPT_SHAPES: dict[str, tuple[str, ...]] = {
    **SHAPES,
    **PAIR_SHAPES,
    **{main: (*_ASKED, main, *_BELOW, "tools") for main in ("instruction", "prompt", "question")},
    "input": (*_ASKED, "input", "context", "options", "tools"),
}
OPTIONAL = {
    "system", "history", "input", "context", "options", "reasoning", "tools",
    "margin", "chosen_score", "rejected_score", "score_1", "score_2",
}  # fmt: skip
# What is optional elsewhere.
NEEDED = {
    **{name: {"input"} for name in ("input-output", "input-pair", "input-single", "input")},
    **{name: {"options"} for name in SHAPES if name.endswith("-choice")},
}
# The column names that a field usually has; the first one that is not empty is read. A field is mapped by any of them.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "turns", "conversation", "dialogue", "dialog"),
    "question": ("question", "question_stem"),
    "context": ("context", "passage"),
    "options": ("options", "choices"),
    "correct": (
        "answerKey", "answer_key", "correct_option", "answer_idx", "answer", "correct_answer", "correct", "label",
    ),
    "output": ("output", "response"),
    "completion": ("completion", "response", "output"),
    "answer": ("answer", "response", "output"),
    "system": ("system", "system_prompt"),
    "reasoning": ("reasoning", "reasoning_content", "thinking"),
    "chosen": ("chosen", "response_j"),
    "rejected": ("rejected", "response_k"),
    "chosen_score": ("chosen_score", "score_chosen", "chosen_rating", "chosen-rating"),
    "rejected_score": ("rejected_score", "score_rejected", "rejected_rating", "rejected-rating"),
    "output_1": ("output_1", "response_1", "answer_1", "response_a"),
    "output_2": ("output_2", "response_2", "answer_2", "response_b"),
    "label": ("label", "preference", "winner", "choice"),
    "desirable": ("label", "desirable", "is_desirable", "feedback", "kto_tag", "thumbs_up"),
}  # fmt: skip
RESPONSES = ("output", "completion", "answer", "correct")


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
    columns: Columns | None,
    where: str,
    shapes: Mapping[str, tuple[str, ...]] = SHAPES,
) -> Shape:
    """The first of the known shapes whose required columns are non-empty in half as many records as any shape's, or
    more: one odd record decides nothing, and one whose conversation is empty does not make questions of a set of them.

    Where they are empty in all records it is enough that they are there: each record's own fault is told in its place.

    Args:
        records: the first ones that can be read.
        columns: the set's own column names by field, such as {question: frage, answer: antwort}, or lists of them,
            which are read as one. Only shapes that have all these fields are considered.
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
        counts = {name: _count(records, required(name, shapes), columns, test) for name in candidates}
        if most := max(counts.values()):
            name = next(name for name, count in counts.items() if 2 * count >= most)
            read = (columns_of(record, field, columns) for field in shapes[name] for record in records)
            names = tuple(dict.fromkeys(column for several in read for column in several))
            return Shape(name, names, tuple(column for column in found if column not in names))
    if shapes is PROMPT_SHAPES:
        mains = [name for name in PROMPT_SHAPES if len(required(name, shapes)) == 1 and name not in PREFERENCE_SHAPES]
        raise DataError(
            f"columns: {where!r} has the columns {_listed(found)}, none of which is known to hold a prompt: "
            f"{', '.join(required(name, shapes)[0] for name in mains)}. Say which one does, for example column=frage"
        )
    raise DataError(
        f"columns: {where!r} has the columns {_listed(found)}, which make none of the known shapes: {_known(shapes)}. "
        "Say which column is which, for example columns={question: frage, answer: antwort}"
    )


def shape_in_words(shape: Shape, shapes: Iterable[str] = SHAPES) -> str:
    """What was detected and why, for a log: `alpaca (columns instruction, output; not read: id), the first of ...`."""
    unread = f"; not read: {_listed(shape.unread)}" if shape.unread else ""
    columns = f"columns {_listed(shape.columns)}{unread}"
    return f"{shape.name} ({columns}), the first that fits of the shapes {', '.join(shapes)}"


def columns_of(record: Record, field: str, columns: Columns | None) -> list[str]:
    """The columns that a field is read from: the mapped ones, else of its usual names the first that is not empty.

    Where all are empty, the first that is there; none where none is. A column that is mapped serves no other field by
    its usual name.
    """
    mapped = mapped_to(field, columns)
    if mapped is not None:
        return [name for name in as_list(mapped) if name in record]
    taken = {name for several in (columns or {}).values() for name in as_list(several)}
    there = [name for name in names_of(field) if name in record and name not in taken and _fits(field, name, record)]
    if field == "options" and not there:
        return [name for name in spread_columns(list(record)) if name not in taken]
    return [name for name in there if not is_empty(record[name])][:1] or there[:1]


def _fits(field: str, name: str, record: Record) -> bool:
    """Whether the column can hold the field, where its name is one that other things have too."""
    if field == "options":
        return options_of(record[name]) is not None
    return field != "messages" or name == field or isinstance(record[name], list)


def mapped_to(field: str, columns: Columns | None) -> str | list[str] | None:
    """What the field is mapped to, under any of its names; None: it is not mapped."""
    return next((columns[key] for key in keys_of(field) if key in columns), None) if columns else None


def keys_of(field: str) -> tuple[str, ...]:
    """The names by which the field is mapped: its usual ones, and for a single reply those of any."""
    return (*names_of(field), *(name for name in RESPONSES if field in RESPONSES and name not in names_of(field)))


def names_of(field: str) -> tuple[str, ...]:
    """The names that the field's column usually has."""
    return USUAL_NAMES.get(field, (field,))


def required(name: str, shapes: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The fields that must not be empty in a record of the shape."""
    return [field for field in shapes[name] if field not in OPTIONAL or field in NEEDED.get(name, ())]


def _candidates(columns: Columns, found: list[str], where: str, shapes: Mapping[str, tuple[str, ...]]) -> list[str]:
    fields = sorted({field for fields in shapes.values() for field in fields})
    known = {name for field in fields for name in names_of(field)}
    for field, mapped in columns.items():
        if field not in known:
            raise DataError(f"columns: {field!r} is not a field that is known; known are: {', '.join(fields)}")
        for column in as_list(mapped):
            if column not in found:
                raise DataError(
                    f"columns: {where!r} has no column {column!r} (named for {field!r}); it has: {_listed(found)}"
                )
    candidates = [name for name, fields in shapes.items() if all(_has_field(fields, key) for key in columns)]
    if not candidates:
        raise DataError(f"columns: no shape has all the fields {', '.join(columns)}; the shapes are: {_known(shapes)}")
    return candidates


def _has_field(fields: Iterable[str], key: str) -> bool:
    return any(key in keys_of(field) for field in fields)


def as_list(columns: str | list[str]) -> list[str]:
    """What a field is mapped to, as a list."""
    return [columns] if isinstance(columns, str) else columns


def _count(records: Sequence[Record], fields: Sequence[str], columns: Columns, test: Callable[..., bool]) -> int:
    return sum(all(test(record, field, columns) for field in fields) for record in records)


def _has(record: Record, field: str, columns: Columns) -> bool:
    return bool(columns_of(record, field, columns))


def _fills(record: Record, field: str, columns: Columns) -> bool:
    return any(not is_empty(record[column]) for column in columns_of(record, field, columns))


def _known(shapes: Mapping[str, tuple[str, ...]]) -> str:
    return ", ".join(f"{name} ({' and '.join(required(name, shapes))})" for name in shapes)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(shorten(name, 40) for name in names)  # a table without header has texts for names
