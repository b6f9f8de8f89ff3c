"""Reading text files: txt, JSON lines and CSV, plain or compressed, in ranges that can be read in parallel."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import zstandard

from datamodules.errors import DataError
from datamodules.units import Bad, Format, Place, Record, Unit

# A unit takes a second to ten of tokenizing: enough units for all cores, and little is lost in an interruption.
MOST_UNIT_BYTES, LEAST_UNIT_BYTES, UNITS_OF_A_FILE = 32 << 20, 1 << 20, 64
BLOCK_BYTES = 64 << 10  # a text file's documents are about this long, so that it streams and can be split
BUFFER_BYTES = 1 << 20
BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def open_bytes(path: str) -> io.BufferedReader:
    """The file's bytes, decompressed by its suffix (.gz, .zst)."""
    file = cast(io.BufferedReader, Path(path).open("rb", buffering=BUFFER_BYTES))  # noqa: SIM115 (the caller does)
    if path.endswith(".gz"):
        return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)), BUFFER_BYTES)
    if path.endswith(".zst"):
        return io.BufferedReader(_ZstdFrames(file), BUFFER_BYTES)
    return file


class _ZstdFrames(io.RawIOBase):
    """Decompresses frame after frame (`cat a.zst b.zst`, pzstd); zstandard's own reader overlooks a cut-off end."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file = file
        self.frame: zstandard.ZstdDecompressionObj | None = None
        self.compressed = b""
        self.ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self.ready:
            self.compressed = self.compressed or self.file.read(io.DEFAULT_BUFFER_SIZE)
            if not self.compressed:
                if self.frame is not None:
                    raise EOFError("its last frame does not end")
                return 0
            frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
            self.ready = memoryview(frame.decompress(self.compressed))
            self.compressed = frame.unused_data if frame.eof else b""
            self.frame = None if frame.eof else frame
        size = min(len(buffer), len(self.ready))
        buffer[:size] = self.ready[:size]
        self.ready = self.ready[size:]
        return size

    def close(self) -> None:
        self.file.close()
        super().close()


def unit_bytes(file_bytes: int) -> int:
    """The size of a file's units, a whole number of blocks. It depends on the file alone, and not on the machine."""
    wanted = min(max(file_bytes // UNITS_OF_A_FILE, LEAST_UNIT_BYTES), MOST_UNIT_BYTES)
    return -(-wanted // BLOCK_BYTES) * BLOCK_BYTES


def _byte_ranges(path: str) -> list[tuple[int, int, int]]:
    size = Path(path).stat().st_size
    if path.endswith((".gz", ".zst")):
        return [(0, -1, size)]
    step = unit_bytes(size)
    return [(start, min(start + step, size), min(step, size - start)) for start in range(0, size, step)]


def _whole(path: str) -> list[tuple[int, int, int]]:
    return [(0, -1, Path(path).stat().st_size)]


def _line_of(unit: Unit, offset: Place) -> str:
    """FILE:LINE of a byte; the file is read again up to there, which only errors pay for."""
    lines, left = 1, offset
    with open_bytes(unit.path) as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            lines += block.count(b"\n")
            left -= len(block)
    return f"{unit.path}:{lines}"


def _not_utf8(error: UnicodeDecodeError) -> Bad:
    if error.object[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return Bad("this is UTF-16, not UTF-8; convert it with `iconv -f utf-16 -t utf-8`")
    byte = error.object[error.start]
    return Bad(f"byte 0x{byte:02x} is not UTF-8; if the file is Latin-1: `iconv -f latin1 -t utf-8`")


def _guarded(records: Iterator[tuple[Place, Record | Bad]], path: str) -> Iterator[tuple[Place, Record | Bad]]:
    """The same records; a file that cannot be read on becomes an error that names it."""
    try:
        yield from records
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(f"{path} is damaged or cut off ({error}); fetch it again") from error
    except csv.Error as error:
        raise DataError(f"{path} is not readable as CSV ({error})") from error


def _cut(block: bytes) -> int:
    """Where in a block the previous document ends: after a blank line, else a line, else at a character."""
    if blank := BLANK_LINE.search(block):
        return blank.end()
    if (end := block.find(b"\n")) >= 0:
        return end + 1
    # UTF-8 continuation bytes are 0b10xxxxxx; at most three follow a character's first byte.
    return next((i for i in range(min(4, len(block))) if block[i] & 0xC0 != 0x80), 0)


def _txt_documents(unit: Unit) -> Iterator[tuple[Place, bytes]]:
    """(offset, bytes) of the documents that begin in the unit. Cuts depend on the offset alone, so units join up."""
    with open_bytes(unit.path) as file:
        if unit.start:
            file.seek(unit.start)
        offset = begin = unit.start
        pending: list[bytes] = []
        while block := file.read(BLOCK_BYTES):
            cut = _cut(block) if offset > 0 else 0
            if offset > unit.start:
                yield begin, b"".join([*pending, block[:cut]])
            if 0 <= unit.stop <= offset:
                return
            begin, pending = offset + cut, [block[cut:]]
            offset += len(block)
        yield begin, b"".join(pending)


def _read_txt(unit: Unit) -> Iterator[tuple[Place, Record | Bad]]:
    for offset, data in _txt_documents(unit):
        data = data.removeprefix(BYTE_ORDER_MARK) if offset == 0 else data
        try:
            yield offset, {"text": data.decode().replace("\r\n", "\n")}
        except UnicodeDecodeError as error:
            yield offset + error.start, _not_utf8(error)


def _read_json_lines(unit: Unit) -> Iterator[tuple[Place, Record | Bad]]:
    with open_bytes(unit.path) as file:
        offset = 0
        if unit.start > 0:
            # A line belongs to the unit in which it begins.
            file.seek(unit.start - 1)
            offset = unit.start - 1 + len(file.readline())
        elif file.peek(len(BYTE_ORDER_MARK)).startswith(BYTE_ORDER_MARK):
            offset = len(file.read(len(BYTE_ORDER_MARK)))
        while (unit.stop < 0 or offset < unit.stop) and (line := file.readline()):
            if line.strip():
                yield offset, _parse(line)
            offset += len(line)


def _parse(line: bytes) -> Record | Bad:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return _not_utf8(error)
    except json.JSONDecodeError as error:
        return Bad(f"broken JSON ({error.msg} at column {error.colno})")
    except RecursionError:
        return Bad("JSON nested too deeply")
    return record if isinstance(record, dict) else Bad(f"a record must be an object, not {type(record).__name__}")


def _is_array(path: str) -> bool:
    with open_bytes(path) as file:
        return file.read(64).removeprefix(BYTE_ORDER_MARK).lstrip()[:1] == b"["


def _split_json(path: str) -> list[tuple[int, int, int]]:
    return _whole(path) if _is_array(path) else _byte_ranges(path)


def _read_json(unit: Unit) -> Iterator[tuple[Place, Record | Bad]]:
    """A `.json` file is JSON lines, or one array, which is read whole."""
    if not _is_array(unit.path):
        yield from _read_json_lines(unit)
        return
    try:
        records = json.loads(open_bytes(unit.path).read().decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{unit.path}: not readable as JSON ({error})") from error
    for row, record in enumerate(records):
        yield row, record if isinstance(record, dict) else Bad("a record must be an object")


def _locate_json(unit: Unit, place: Place) -> str:
    return f"{unit.path}, record {place + 1}" if _is_array(unit.path) else _line_of(unit, place)


def _read_csv(unit: Unit) -> Iterator[tuple[Place, Record | Bad]]:
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if ".tsv" in Path(unit.path).suffixes else ","
    # surrogateescape keeps the reader going past bad bytes, which then show in the row they are in.
    with io.TextIOWrapper(open_bytes(unit.path), "utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file, delimiter=delimiter)
        for row in rows:
            try:
                "".join(value for value in row.values() if isinstance(value, str)).encode()
            except UnicodeEncodeError as error:
                byte = ord(error.object[error.start]) & 0xFF
                yield rows.line_num, _not_utf8(UnicodeDecodeError("utf-8", bytes([byte]), 0, 1, "invalid"))
            else:
                yield rows.line_num, row


def _named(read: Callable[[Unit], Iterator[tuple[Place, Record | Bad]]]) -> Callable:
    return lambda unit: _guarded(read(unit), unit.path)


TEXT_FORMATS = {
    "txt": Format(_byte_ranges, _named(_read_txt), _line_of, columns=False),
    "jsonl": Format(_byte_ranges, _named(_read_json_lines), _line_of),
    "json": Format(_split_json, _named(_read_json), _locate_json),
    "csv": Format(_whole, _named(_read_csv), lambda unit, place: f"{unit.path}:{place}"),
}
