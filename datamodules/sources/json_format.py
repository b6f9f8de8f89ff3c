"""Reading JSON: a record a line, or one array, or records of several lines each."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from datamodules.errors import DataError
from datamodules.sources import text_files
from datamodules.sources.surrogates import encodable
from datamodules.sources.text_files import (
    BUFFER_BYTES,
    BYTE_ORDER_MARK,
    Records,
    byte_ranges,
    guarded,
    line_of,
    naming,
    not_utf8,
    open_bytes,
    over_limit,
    rest_of_line,
    whole,
)
from datamodules.sources.units import Bad, Format, Place, Record, Unit

DEEPEST = 100
"""Objects and lists within each other: far more than any record has, and no recursion in later steps breaks at it."""

HEAD_BYTES = 64 << 10
NEAR_THE_END = 32  # characters; a number, a literal or an escape that is cut off is shorter
SPACE = re.compile(r"[ \t\r\n]*")


class _UnfitError(ValueError):
    """What JSON allows and a record must not have."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise _UnfitError(f"the key {encodable(twice)[:40]!r} stands twice in one object")
    return record


DECODER = json.JSONDecoder(object_pairs_hook=_object)
LENIENT = json.JSONDecoder(parse_int=str)
"""Finds where a value ends that `DECODER` refuses."""


def _value(text: str, start: int) -> tuple[Any, int]:
    """The value that begins there, or what is wrong with it (`Bad`); and where it ends.

    Raises:
        json.JSONDecodeError: it is no JSON.
    """
    try:
        value, end = DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        return Bad("JSON nested too deeply"), len(text)
    except _UnfitError as unfit:
        return Bad(str(unfit)), _end(text, start)
    except ValueError:  # Python makes no integer of more than 4,300 digits
        return Bad("a number has more than 4,300 digits"), _end(text, start)
    if text.count("[", start, end) + text.count("{", start, end) > DEEPEST and _depth(value) > DEEPEST:
        return Bad("JSON nested too deeply"), end
    return value, end


def _end(text: str, start: int) -> int:
    """Where a value ends that is refused already; what is nested too deeply is taken to fill the text."""
    try:
        return LENIENT.raw_decode(text, start)[1]
    except RecursionError:
        return len(text)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [inner for outer in level for inner in _inside(outer)]:
        depth += 1
    return depth


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _record(value: Any) -> Record | Bad:
    if isinstance(value, dict | Bad):
        return value
    return Bad(f"a record must be an object, not {type(value).__name__}")


def _read_lines(unit: Unit) -> Records:
    with open_bytes(unit.path) as file:
        offset = 0
        if unit.start > 0:
            # A line belongs to the unit in which it begins.
            file.seek(unit.start - 1)
            offset = unit.start - 1 + rest_of_line(file, unit.stop - unit.start + 1)
        elif file.peek(len(BYTE_ORDER_MARK)).startswith(BYTE_ORDER_MARK):
            offset = len(file.read(len(BYTE_ORDER_MARK)))
        while unit.stop < 0 or offset < unit.stop:
            line = file.readline(text_files.LONGEST_RECORD + 1)
            if not line:
                return
            size = len(line)
            if size > text_files.LONGEST_RECORD:
                size += 0 if line.endswith(b"\n") else rest_of_line(file)
                yield offset, over_limit("line")
            elif line.strip():
                yield offset, _parse(line)
            offset += size


def _parse(line: bytes) -> Record | Bad:
    try:
        text = line.decode().strip(" \t\r\n")
        value, end = _value(text, 0)
    except UnicodeDecodeError as error:
        return not_utf8(error)
    except json.JSONDecodeError as error:
        return Bad(f"broken JSON ({_words(error)} at column {error.colno})")
    if end < len(text):
        return Bad(f"broken JSON (a second value at column {len(text) - len(text[end:].lstrip()) + 1})")
    return _record(value)


def _words(error: json.JSONDecodeError) -> str:
    return error.msg.removesuffix(" at")


def _read_values(unit: Unit) -> Records:
    """One array of records, or records one after the other, however many lines they take; streaming."""
    with io.TextIOWrapper(open_bytes(unit.path), "utf-8-sig") as file:
        try:
            for row, value in enumerate(_values(file)):
                yield row, _record(value)
        except UnicodeDecodeError as error:
            raise DataError(f"{unit.path}: {not_utf8(error).reason}") from error
        except json.JSONDecodeError as error:
            raise DataError(f"{unit.path}: not readable as JSON ({_words(error)}, in line {error.lineno})") from error
        except _UnfitError as unfit:
            raise DataError(f"{unit.path}: {unfit}") from unfit


def _values(file: io.TextIOWrapper) -> Iterator[Any]:
    """The elements of an array, or the values that stand there one after the other.

    Raises:
        json.JSONDecodeError: with the line in the file.
    """
    text = _Window(file)
    is_array = text.next_is("[")
    first = True
    while not text.at_end():
        if is_array and text.next_is("]"):
            if not text.at_end():
                raise text.error("Extra data")
            return
        if is_array and not first and not text.next_is(","):
            raise text.error("Expecting ',' delimiter")
        yield text.value()
        first = False
    if is_array:
        raise text.error("The array does not end")


class _Window:
    """A moving part of a text, as long as the value that is being read."""

    def __init__(self, file: io.TextIOWrapper) -> None:
        self.file = file
        self.text = ""
        self.place = 0
        self.lines_before = 0
        self.is_last = False

    def at_end(self) -> bool:
        """Goes on to what is no space; whether there is nothing more."""
        while True:
            match = SPACE.match(self.text, self.place)
            assert match is not None
            self.place = match.end()
            if self.place < len(self.text) or self.is_last:
                return self.place == len(self.text)
            self._read_on()

    def next_is(self, mark: str) -> bool:
        """Goes past the mark if it is what comes next."""
        found = not self.at_end() and self.text[self.place] == mark
        self.place += found
        return found

    def value(self) -> Any:
        """Goes past the value that comes next."""
        self.at_end()
        while True:
            try:
                value, end = _value(self.text, self.place)
            except json.JSONDecodeError as error:
                may_go_on = error.msg.startswith("Unterminated") or error.pos > len(self.text) - NEAR_THE_END
                if self.is_last or not may_go_on:
                    raise self.error(error.msg, error.pos) from None
            else:
                if end < len(self.text) or self.is_last:
                    self.place = end
                    return value
            self._read_on()

    def _read_on(self) -> None:
        """At least doubles what is held, so that a long value is parsed again only a few times."""
        self.lines_before += self.text.count("\n", 0, self.place)
        self.text = self.text[self.place :]
        self.place = 0
        if len(self.text) > text_files.LONGEST_RECORD:
            raise _UnfitError(f"line {self.lines_before + 1}: {over_limit('record').reason}")
        more = self.file.read(max(BUFFER_BYTES, len(self.text)))
        self.is_last = not more
        self.text += more

    def error(self, words: str, place: int | None = None) -> json.JSONDecodeError:
        """One with the line in the file."""
        error = json.JSONDecodeError(words, self.text, self.place if place is None else place)
        error.lineno += self.lines_before
        return error


def _has_lines(path: str) -> bool:
    """Whether each line is a value by itself, as far as the first one shows it."""
    with naming(path), open_bytes(path) as file:
        head = file.read(HEAD_BYTES).removeprefix(BYTE_ORDER_MARK).lstrip()
    line, end, _ = head.partition(b"\n")
    if head[:1] not in (b"[", b"{") or not end:
        return head[:1] != b"["
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        # Cut off at its end, and going on in the next line.
        goes_on = error.pos >= len(line.decode(errors="surrogatepass").rstrip())
        return head[:1] != b"[" and not (goes_on and _is_a_value(path))
    except (ValueError, RecursionError):
        return True
    return head[:1] != b"[" or b"{" not in line


def _is_a_value(path: str) -> bool:
    with io.TextIOWrapper(open_bytes(path), "utf-8-sig") as file:
        try:
            return len(list(islice(_values(file), 1))) > 0
        except (ValueError, RecursionError):
            return False


def _split(path: str) -> list[tuple[int, int, int]]:
    return byte_ranges(path) if _has_lines(path) else whole(path)


def _read(unit: Unit) -> Records:
    yield from (_read_lines if _has_lines(unit.path) else _read_values)(unit)


def _locate(unit: Unit, place: Place) -> str:
    return line_of(unit, place) if _has_lines(unit.path) else f"{unit.path}, record {place + 1}"


def _format(read: Callable[[Unit], Records]) -> Format:
    return Format(_split, guarded(read), _locate)


JSON = JSON_LINES = _format(_read)
