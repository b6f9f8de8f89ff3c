"""The texts of a unit, one document each, clean enough for any tokenizer."""

from collections.abc import Iterator
from typing import Any

from datamodules.bad_records import BadRecords
from datamodules.formats import records
from datamodules.units import Bad, Record, Unit


def texts_of(unit: Unit, bad: BadRecords) -> Iterator[str]:
    """The documents of a unit, without the empty ones.

    Args:
        bad: notes the records that are broken, are not UTF-8, or hold no text, and counts the empty texts.
    """
    for place, record in records(unit):
        text = _text_of(record, unit.column)
        if isinstance(text, Bad):
            bad.note(place, text)
        elif text:
            yield encodable(text)
        else:
            bad.left_out["empty texts"] += 1


def _text_of(record: Record | Bad, column: str) -> str | Bad:
    if isinstance(record, Bad):
        return record
    text = record.get(column)
    if isinstance(text, str):
        return text
    if column not in record:
        return Bad(f"no column {column!r}; it has: {', '.join(str(name) for name in record)}")
    return Bad(f"column {column!r} holds {type(text).__name__}, not text")


def encodable(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which JSON can carry ("\\ud800") and no UTF-8 encoder takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def is_encodable(value: Any) -> bool:
    """Whether all texts in a value of JSON, keys included, can be written as UTF-8: no lone surrogates."""
    if isinstance(value, str):
        return encodable(value) == value
    if isinstance(value, dict):
        return all(is_encodable(key) and is_encodable(inner) for key, inner in value.items())
    return all(map(is_encodable, value)) if isinstance(value, list | tuple) else True
