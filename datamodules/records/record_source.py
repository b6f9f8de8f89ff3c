"""Sources of conversations or of pairs of them: which shape their records have."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from datamodules.errors import DataError
from datamodules.records.inner_records import inner_records
from datamodules.records.shapes import PROMPT_SHAPES, SHAPES, as_list, detect_shape, keys_of, shape_in_words
from datamodules.sources.bad_records import BadRecords, OnBadRecord
from datamodules.sources.discover import Source, first_units, resolve
from datamodules.sources.formats import FORMATS, records
from datamodules.sources.surrogates import encodable
from datamodules.sources.units import Bad, Record, Unit

RECORDS_PEEKED = 16

Shapes: TypeAlias = Mapping[str, tuple[str, ...]]


class ChatRecord(NamedTuple):
    """A record as it was read, and what it says.

    Args:
        record: all of its columns.
        messages: the conversation; of a pair the one with the chosen response.
        rejected: of a pair the other response.
        hash: decides its side of a split.
    """

    record: Record
    messages: list[dict[str, Any]]
    rejected: str | None
    hash: int


class Writer(Protocol):
    """Writes records down as text, as an encoder does before it tokenizes."""

    def read(self, unit: Unit) -> Iterator[ChatRecord]:
        """The records that can be used, as they are."""
        ...

    def refuses(self, messages: list[dict[str, Any]], rejected: str | None) -> str | None:
        """Why a record that says this cannot be trained on; None where it can."""
        ...

    def settings(self) -> dict[str, Any]:
        """What decides how records are written down; JSON."""
        ...

    def written(self, unit: Unit, bad: BadRecords) -> Iterator[Any]:
        """One item a record that can be used; the others are noted."""
        ...


@dataclass(frozen=True)
class RecordSource(Source):
    """One set of conversations to train on.

    Args:
        columns: where the columns have other names: what they hold (messages, prompt, completion, instruction, input,
            output, question, answer, system, tools, ...) and how they are called, such as `{question: frage}`. Several
            columns are read as one text: `{prompt: [body, question]}`.
    """

    columns: dict[str, str | list[str]] | None = None


@dataclass(frozen=True)
class OtherSource(RecordSource):
    """A set that `columns` were written for another one of: they count where they fit it."""


def record_units(source: RecordSource, root: Path, look_again: bool = True, shapes: Shapes = SHAPES) -> list[Unit]:
    """As `resolve`, each unit told how to read its records; what was found is printed.

    Args:
        shapes: those that the records may have, as for `detect_shape`.

    Raises:
        DataError: nothing is there, it is empty, or the records have no known shape.
    """
    return with_shape(resolve(source, root, look_again), source, shapes, announce=look_again)


def peek_records(
    source: RecordSource,
    root: Path,
    on_bad_record: OnBadRecord,
    read: Callable[[Unit, BadRecords], Iterator[Any]],
    shapes: Shapes = SHAPES,
) -> None:
    """Reads the first records of a source's first files, without looking at the rest.

    Args:
        read: what is made of a unit's records.

    Raises:
        DataError: as `record_units`; or a bad record, with `on_bad_record="stop"`.
    """
    for unit in with_shape(first_units(source, root), source, shapes):
        for _ in islice(read(unit, BadRecords(unit, on_bad_record)), RECORDS_PEEKED):
            pass


def with_shape(units: list[Unit], source: RecordSource, shapes: Shapes, announce: bool = False) -> list[Unit]:
    """The units, told how to read their records, as the first ones show it; raises `DataError` as `record_units`."""
    if not units:
        return units
    text = next((unit.path for unit in units if not FORMATS[unit.format].columns), None)
    if text is not None:
        raise DataError(
            f"path: {text!r} is plain text; records need columns (.jsonl, .json, .csv, .parquet);"
            " name the files that hold them"
        )
    first = next(filter(None, (list(islice(_readable(unit), RECORDS_PEEKED)) for unit in units)), [])
    if not first:
        raise DataError(f"path: {source.path!r} holds no record that can be read{_first_bad(units[0])}")
    columns = _fitting(source, first, shapes)
    try:
        shape = detect_shape(first, columns, source.path, shapes)
    except DataError as error:
        raise DataError(f"{error}{inner_records(first, units[0].path)}") from None
    if announce and shapes is not PROMPT_SHAPES:  # of prompts it is said which column each one comes from
        # Each tokenizing process imports this module, and would wait longer for Lightning than it works.
        from lightning.pytorch.utilities.rank_zero import rank_zero_info

        rank_zero_info(encodable(f"{source.path}: {shape_in_words(shape, shapes)}"))
    return [replace(unit, column="", shape=shape.name, columns=columns) for unit in units]


def _first_bad(unit: Unit) -> str:
    found = next(((place, record) for place, record in records(unit) if isinstance(record, Bad)), None)
    return f"; the first: {FORMATS[unit.format].locate(unit, found[0])}: {found[1].reason}" if found else ""


def _fitting(source: RecordSource, first: list[Record], shapes: Shapes) -> dict[str, str | list[str]] | None:
    """The source's column names; of another set's those that its shapes know, if it has any of these columns."""
    columns = dict(source.columns or {})
    if isinstance(source, OtherSource):
        known = {name for fields in shapes.values() for field in fields for name in keys_of(field)}
        columns = {field: names for field, names in columns.items() if field in known}
        there = {name for record in first for name in record}
        if there.isdisjoint(name for names in columns.values() for name in as_list(names)):
            return None
    return columns or None


def _readable(unit: Unit) -> Iterator[Record]:
    return (record for _, record in records(replace(unit, column="")) if not isinstance(record, Bad))
