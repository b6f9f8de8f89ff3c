"""Sources of text: which column of their records to read, and the texts in it, clean enough for any tokenizer."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from textwrap import shorten

from datamodules.errors import DataError
from datamodules.records.inner_records import inner_records
from datamodules.sources import text_files
from datamodules.sources.bad_records import BadRecords, OnBadRecord
from datamodules.sources.discover import Source, first_units, resolve
from datamodules.sources.formats import FORMATS, records
from datamodules.sources.surrogates import encodable
from datamodules.sources.units import Bad, Record, Unit

RECORDS_PEEKED = 16


@dataclass(frozen=True)
class TextSource(Source):
    """One text to train on.

    Args:
        text_column: where a record's text is. None: `text`, else the only column that holds strings.
    """

    text_column: str | None = None


@dataclass(frozen=True)
class OtherTextSource(TextSource):
    """A text that `text_column` was written for another one of: it counts where there is such a column."""


def text_units(source: TextSource, root: Path, look_again: bool = True) -> list[Unit]:
    """As `resolve`, each unit told which column to read.

    Raises:
        DataError: nothing is there, it is empty, or no column can be taken for the text.
    """
    return _with_column(resolve(source, root, look_again), source)


def peek_texts(source: TextSource, root: Path, on_bad_record: OnBadRecord) -> None:
    """Reads the first records of a source's first files, without looking at the rest.

    Raises:
        DataError: as `text_units`; or a bad record, with `on_bad_record="stop"`.
    """
    for unit in _with_column(first_units(source, root), source):
        for _ in islice(texts_of(unit, BadRecords(unit, on_bad_record)), RECORDS_PEEKED):
            pass


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


def _with_column(units: list[Unit], source: TextSource) -> list[Unit]:
    """The units, told which column to read, as the first records that can be read show it."""
    unit = next((unit for unit in units if FORMATS[unit.format].columns), None)
    if unit is None:
        return units
    first = list(islice((record for _, record in records(unit) if not isinstance(record, Bad)), RECORDS_PEEKED))
    return [_reading(unit, _text_column(first, source, unit.path)) for unit in units] if first else units


def _reading(unit: Unit, column: str) -> Unit:
    return replace(unit, column=column) if FORMATS[unit.format].columns else unit


def _text_column(first: list[Record], source: TextSource, path: str) -> str:
    """The name of the column that holds the text.

    Raises:
        DataError: it is not there, or there are several to choose from.
    """
    names = list(dict.fromkeys(str(name) for record in first for name in record))
    inner = inner_records(first, path)
    found = ", ".join(shorten(name, 40) for name in names)  # a table without header has texts for names
    if source.text_column is not None:
        if source.text_column in names:
            return source.text_column
        if not isinstance(source, OtherTextSource):
            raise DataError(
                f"text_column: {source.path!r} has no column {source.text_column!r}; it has: {found}{inner}"
            )
    texts = {name: sum(isinstance(record.get(name), str) for record in first) for name in ["text", *names]}
    usual = [name for name, count in texts.items() if 2 * count >= max(1, *texts.values())]
    if "text" in usual or len(usual) == 1:
        return "text" if "text" in usual else usual[0]
    setting = "val_text_column" if isinstance(source, OtherTextSource) else "text_column"
    raise DataError(
        f"{setting}: {source.path!r} has no column `text`; it has: {found}. Name the one to read with {setting}{inner}"
    )


def _text_of(record: Record | Bad, column: str) -> str | Bad:
    if isinstance(record, Bad):
        return record
    text = record.get(column)
    if isinstance(text, str):
        return text
    if column not in record:
        return Bad(f"no column {column!r}; it has: {', '.join(str(name) for name in record)}")
    return Bad(f"column {column!r} holds {type(text).__name__}, not text")
