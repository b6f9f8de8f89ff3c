"""Files of text as bytes: decompressed, cut into ranges that can be read in parallel, and seen to be UTF-8."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import zstandard

from datamodules.errors import DataError
from datamodules.sources.units import Bad, Place, Record, Unit

# A unit takes a second to ten of tokenizing: enough units for all cores, and little is lost in an interruption.
MOST_UNIT_BYTES, LEAST_UNIT_BYTES, UNITS_OF_A_FILE = 32 << 20, 1 << 20, 64
BLOCK_BYTES = 64 << 10  # a text file's documents are about this long, so that it streams and can be split
BUFFER_BYTES = 1 << 20
LONGEST_RECORD = 16 << 20
"""Bytes. A record is held whole, and tokenizing takes up to 150 bytes for each; 48 KB of .zst can say gigabytes."""

ZSTD_INPUT_BYTES = 512  # comes to 16 MB at the most, as 4 bytes can say a block of 128 KiB
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
OTHER_KINDS = {
    b"\x1f\x8b": "compressed by gzip; add .gz to its name",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; add .zst to its name",
    b"PK\x03\x04": "a .zip archive or a spreadsheet; unpack it, or save it as .csv",
    b"PAR1": "parquet; call it .parquet",
    b"%PDF": "a PDF; extract its text",
}

Records = Iterator[tuple[Place, Record | Bad]]


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
            self.compressed = self.compressed or self.file.read(ZSTD_INPUT_BYTES)
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


def byte_ranges(path: str) -> list[tuple[int, int, int]]:
    """The file in ranges of about `unit_bytes`; a compressed one whole."""
    size = Path(path).stat().st_size
    if path.endswith((".gz", ".zst")):
        return [(0, -1, size)]
    step = unit_bytes(size)
    return [(start, min(start + step, size), min(step, size - start)) for start in range(0, size, step)]


def whole(path: str) -> list[tuple[int, int, int]]:
    """The file in one range."""
    return [(0, -1, Path(path).stat().st_size)]


def line_of(unit: Unit, offset: Place) -> str:
    """FILE:LINE of a byte; the file is read again up to there, which only errors pay for."""
    lines, left = 1, offset
    with open_bytes(unit.path) as file:
        while left > 0 and (block := file.read(min(left, BUFFER_BYTES))):
            lines += block.count(b"\n")
            left -= len(block)
    return f"{unit.path}:{lines}"


def rest_of_line(file: io.BufferedReader | io.TextIOBase, most: int = -1) -> int:
    """Reads on to the end of a line without holding it; returns how much that was.

    Args:
        most: stop after so much; -1: wherever the line ends.
    """
    size = 0
    while part := file.readline(BUFFER_BYTES):
        size += len(part)
        if part[-1:] in (b"\n", "\n") or 0 <= most <= size:
            break
    return size


def over_limit(what: str) -> Bad:
    """What is said of a record that is too long to be held."""
    return Bad(f"this {what} is longer than {LONGEST_RECORD >> 20} MiB, the most that one record may have; split it")


def not_utf8(error: UnicodeDecodeError) -> Bad:
    """What is said of a byte that is not UTF-8."""
    byte = error.object[error.start]
    return Bad(f"byte 0x{byte:02x} is not UTF-8; if the file is Latin-1: `iconv -f latin1 -t utf-8`")


def _check_kind(path: str) -> None:
    with open_bytes(path) as file:
        head = file.read(64)
    for kind, words in OTHER_KINDS.items():
        if head.startswith(kind):
            raise DataError(f"{path} is no text, but {words}")
    for number in (32, 16):
        marks = {16: (b"\xff\xfe", b"\xfe\xff"), 32: (b"\xff\xfe\0\0", b"\0\0\xfe\xff")}[number]
        width = number // 8
        # Without a mark: what letters there are have zeros beside them.
        bare = len(head) >= 2 * width and any(
            not any(b for place, b in enumerate(head) if place % width != used) and head[used]
            for used in (0, width - 1)
        )
        if head.startswith(marks) or bare:
            raise DataError(f"{path} is UTF-{number}, not UTF-8; convert it with `iconv -f utf-{number} -t utf-8`")


@contextmanager
def naming(path: str) -> Iterator[None]:
    """What shows in the block that the file is damaged becomes an error that names it; raises `DataError`."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DataError(f"{path} is damaged or cut off ({error}); fetch it again") from error


def guarded(read: Callable[[Unit], Records]) -> Callable[[Unit], Records]:
    """The same records; a file that is no text, or cannot be read on, becomes an error that names it."""

    def reading(unit: Unit) -> Records:
        with naming(unit.path):
            if unit.start == 0:
                _check_kind(unit.path)
            yield from read(unit)

    return reading
