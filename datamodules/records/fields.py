"""A record, asked for its fields, whatever the columns that these stand in."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from datamodules.records.options import Option, of_columns, options_of
from datamodules.records.shapes import Columns, columns_of, mapped_to, names_of
from datamodules.records.turns import UnfitError, kind_of, parsed, spoken, text_of, without_nulls
from datamodules.sources.units import Record, Row, is_empty


class Turn(NamedTuple):
    """A turn as a record holds it: where it stands there, what it is, and whether it may be trained on."""

    where: str
    said: Any
    trainable: bool = True


class Fields:
    """A record, asked for its fields.

    Attributes:
        read: the columns that were read so far and are not empty, in that order.
    """

    def __init__(self, record: Record, columns: Columns | None) -> None:
        self.record = record
        self.columns = columns
        self.read: list[str] = []

    def column(self, field: str) -> str:
        """The name of the field's column, the first of several; raises `UnfitError` where there is none."""
        columns = self.columns_of(field)
        if not columns:
            name = " or ".join(self.names_of(field))
            raise UnfitError(f"no column {name}; it has: {', '.join(str(name)[:40] for name in self.record)}")
        return columns[0]

    def names_of(self, field: str) -> tuple[str, ...]:
        """The columns that the field could stand in."""
        mapped = self.mapped(field)
        return names_of(field) if mapped is None else (mapped,) if isinstance(mapped, str) else tuple(mapped)

    def columns_of(self, field: str) -> list[str]:
        """The columns that the field is read from; none where it is absent."""
        return columns_of(self.record, field, self.columns)

    def non_empty(self, field: str) -> list[str]:
        """The field's columns that are not empty."""
        return [name for name in self.columns_of(field) if not is_empty(self.record[name])]

    def value(self, column: str) -> Any:
        """What stands in a column; of columnar data without the nulls that pad its objects."""
        value = self.record[column]
        return without_nulls(value) if isinstance(self.record, Row) else value

    def optional(self, field: str) -> Any:
        """The field's value, the text of several columns; None where it is absent or empty."""
        columns = self.non_empty(field)
        if not columns:
            return None
        self.read += [name for name in columns if name not in self.read]
        return self.value(columns[0]) if len(columns) == 1 else self._joined(columns)

    def optional_text(self, field: str, numbers: bool = False) -> str:
        """The field's text, or number as for `text_of`; empty where it is absent."""
        value = self.optional(field)
        return "" if value is None else text_of(value, f"column {self.column(field)!r}", numbers)

    def text(self, field: str, numbers: bool = False) -> str:
        """The field's text, or number as for `text_of`; raises `UnfitError` where there is none."""
        column = self.column(field)
        value = self.optional(field)
        text = text_of(self.record[column] if value is None else value, f"column {column!r}", numbers)
        if not text.strip():
            raise UnfitError(f"column {column!r} is empty")
        return text

    def turns(self, field: str, trainable: bool = True) -> Iterator[Turn]:
        """The turns in a list; raises `UnfitError` where the field holds none."""
        column = self.column(field)
        value = self.optional(field)
        turns = self.value(column) if value is None else value
        if isinstance(turns, str):
            turns = parsed(turns, f"column {column!r}")
        if not isinstance(turns, list):
            raise UnfitError(f"column {column!r} holds {kind_of(turns)}, not a list of turns")
        if not turns:
            raise UnfitError(f"column {column!r} has no turns")
        said = [one for turn in turns for one in spoken(turn)]
        return (Turn(f"turn {number} of {column}", turn, trainable) for number, turn in enumerate(said, 1))

    def options(self) -> list[Option]:
        """The options to choose from; none where there are none.

        Raises:
            UnfitError: columns are mapped to `options` that hold something else.
        """
        columns = self.columns_of("options")
        if not columns:
            return []
        self.read += [name for name in columns if name not in self.read and not is_empty(self.record[name])]
        if len(columns) > 1 or isinstance(self.mapped("options"), list):
            return of_columns(self.record, columns)
        found = options_of(self.value(columns[0]))
        if found is None:
            raise UnfitError(
                f"column {columns[0]!r} holds no options: a list of texts, or an object of labels and texts"
            )
        return found

    def mapped(self, field: str) -> str | list[str] | None:
        """What `columns` says of the field, which may be named by any of its usual names."""
        return mapped_to(field, self.columns)

    def _joined(self, columns: list[str]) -> str:
        return "\n".join(text_of(self.record[name], f"column {name!r}", numbers=True) for name in columns)
