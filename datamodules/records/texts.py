"""The texts of a unit, one document each, clean enough for any tokenizer."""

from collections.abc import Iterator

from datamodules.sources import text_files
from datamodules.sources.bad_records import BadRecords
from datamodules.sources.formats import records
from datamodules.sources.surrogates import encodable
from datamodules.sources.units import Bad, Record, Unit


def texts_of(unit: Unit, bad: BadRecords) -> Iterator[str]:
    """The documents of a unit, without the empty ones.

    Args:
        bad: notes the records that are broken, are not UTF-8, or hold no text, and counts the empty texts.
    """
    for place, record in records(unit):
        text = _text_of(record, unit.column)
        if isinstance(text, Bad):
            bad.note(place, text)
        elif len(text) > text_files.LONGEST_RECORD:  # where a table has no lines to be measured
            bad.note(place, text_files.over_limit("text"))
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
