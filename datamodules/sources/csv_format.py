"""Reading tables of text (.csv, .tsv): every row has the header's fields, or is refused by its line."""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from datamodules.errors import DataError
from datamodules.sources import text_files
from datamodules.sources.text_files import Records, guarded, not_utf8, open_bytes, over_limit, rest_of_line, whole
from datamodules.sources.units import Bad, Format, Place, Record, Unit

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
HEAD_BYTES, ROWS_SNIFFED = 64 << 10, 20
EXCEL_S_HINT = re.compile(r"sep=(.)\r?\n?")  # a first line that Excel reads, and writes in some countries


class _TooLongError(Exception):
    """A row goes on longer than one may be."""


class _Lines:
    """The lines of a file, which can be given back.

    Attributes:
        number: of the line that was taken last; the first is 1.
        taken: the lines since `mark`.
    """

    def __init__(self, file: io.TextIOWrapper) -> None:
        self.file = file
        self.number = 0
        self.taken: list[str] = []
        self._given_back: deque[str] = deque()
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._given_back.popleft() if self._given_back else self.file.readline(text_files.LONGEST_RECORD + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.taken.append(line)
        self._size += len(line)
        if self._size > text_files.LONGEST_RECORD:
            if not line.endswith(("\n", "\r")):
                rest_of_line(self.file)
            raise _TooLongError
        return line

    def mark(self) -> None:
        """From here on lines are remembered."""
        self.taken, self._size = [], 0

    def give_back(self, number: int) -> None:
        """All lines but the first `number` since `mark` come again."""
        self._given_back.extendleft(reversed(self.taken[number:]))
        self.number -= len(self.taken[number:])
        self.mark()


def _rows(lines: _Lines, delimiter: str) -> Iterator[tuple[Place, list[str] | Bad]]:
    """(line of its beginning, fields) of each row; after a row that is not in order, the next line begins one."""
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.mark()
        first = lines.number + 1
        try:
            row: list[str] | Bad = next(rows)
        except StopIteration:
            return
        except _TooLongError:
            row = over_limit("row, from a quote that opens in it," if len(lines.taken) > 1 else "row")
        except csv.Error as error:
            row = _misquoted(error, first, lines.number)
        if isinstance(row, Bad):
            lines.give_back(1)
            rows = csv.reader(lines, delimiter=delimiter, strict=True)
        yield first, row


def _misquoted(error: csv.Error, first: int, last: int) -> Bad:
    if "end of data" in str(error):
        return Bad("a quote opens in this row and never closes")
    if "expected after" in str(error):
        where = f" (in line {last})" if last > first else ""
        return Bad(
            f"a quote opens a field of this row, and the next one{where} does not end the field; close it, or write a"
            ' quote within a quoted field as ""'
        )
    return Bad(f"this row is no CSV ({error})")


def _delimiter(path: str) -> tuple[str, bool]:
    """The one that the file's name says if the header has it, else one that makes columns of it; and whether the first
    line does nothing but say so.
    """
    usual = "\t" if ".tsv" in Path(path).suffixes else ","
    with open_bytes(path) as file:
        head = file.read(HEAD_BYTES).decode("utf-8-sig", "surrogateescape")
    sample = io.StringIO(head, newline="").readlines()[:ROWS_SNIFFED]
    if sample and (hint := EXCEL_S_HINT.fullmatch(sample[0])):
        return hint[1], True
    columns = {mark: _num_columns(sample, mark) for mark in (usual, *DELIMITERS)}
    best = max(columns, key=lambda mark: columns[mark])
    return best if columns[best][0] else usual, False


def _num_columns(sample: list[str], delimiter: str) -> tuple[bool, bool, int]:
    """Whether it makes columns of the header, whether the rows have as many, and how many; the first is best."""
    rows = [row for row in csv.reader(sample, delimiter=delimiter) if row]
    count = len(rows[0]) if rows else 0
    # The sample's end may cut a row, so it does not count.
    return count > 1, all(len(row) == count for row in rows[1:-1]), count


def _read(unit: Unit) -> Records:
    csv.field_size_limit(2**31 - 1)
    delimiter, is_said = _delimiter(unit.path)
    # surrogateescape keeps the reader going past bad bytes, which then show in the row they are in.
    with io.TextIOWrapper(open_bytes(unit.path), "utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _Lines(file)
        if is_said:
            next(lines)
        rows = _rows(lines, delimiter)
        header = _header(rows, unit.path)
        for line, row in rows:
            if isinstance(row, Bad) or "".join(row).strip() or len(row) == len(header) > 1:
                yield line, row if isinstance(row, Bad) else _record(row, header, delimiter)


def _header(rows: Iterator[tuple[Place, list[str] | Bad]], path: str) -> list[str]:
    line, header = next(((line, row) for line, row in rows if isinstance(row, Bad) or "".join(row).strip()), (1, []))
    if isinstance(header, Bad):
        raise DataError(f"{path}:{line}: {header.reason}")
    if bad := _undecodable(header):
        raise DataError(f"{path}:{line}: {bad.reason}")
    twice = next((name for place, name in enumerate(header) if name and name in header[:place]), None)
    if twice is not None:
        raise DataError(f"{path}:{line}: two columns are called {twice!r}; give one of them another name")
    return header


def _record(row: list[str], header: list[str], delimiter: str) -> Record | Bad:
    if bad := _undecodable(row):
        return bad
    if len(row) != len(header):
        return Bad(
            f"this row has {len(row)} fields, and the header {len(header)}; put fields that hold a"
            f" {DELIMITERS.get(delimiter, repr(delimiter))} into double quotes"
        )
    if any(field.startswith(' "') and field.endswith('"') for field in row):
        return Bad("a space stands before a quote, which would make it a part of the text; take the space away")
    return dict(zip(header, row, strict=True))


def _undecodable(row: list[str]) -> Bad | None:
    try:
        "".join(row).encode()
    except UnicodeEncodeError as error:
        byte = ord(error.object[error.start]) & 0xFF
        return not_utf8(UnicodeDecodeError("utf-8", bytes([byte]), 0, 1, "invalid"))
    return None


CSV = Format(whole, guarded(_read), lambda unit, place: f"{unit.path}:{place}")
