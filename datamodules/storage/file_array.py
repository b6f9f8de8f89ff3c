"""Arrays that lie in files with checksums, and are read piece by piece."""

from __future__ import annotations

import os
import zlib
from array import array
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from datamodules.errors import DataError

OPEN_FILES = 256  # of this process; a corpus may have thousands of shards, and 1,024 open files are a common limit
BLOCK = 4096  # bytes that have a checksum together: what a disk reads at once, so a row costs no more reading
SUM = 4  # bytes of a CRC-32; those of all blocks stand at the file's end


@dataclass(frozen=True)
class FileArray:
    """A 1-D array of plain values in a file that `SummedFile` wrote. Slicing reads that slice and little else.

    Reads rather than a memory map: pages of a map count as the process's own memory once they were touched, so that
    an epoch over tens of GB would look, to a scheduler that limits memory, as if it took tens of GB.

    Raises:
        DataError: what is read is not what was written. The file is removed, so that it is made anew.
    """

    path: str
    dtype: np.dtype

    @cached_property
    def num_bytes(self) -> int:
        """Of the values, without the checksums."""
        size = Path(self.path).stat().st_size
        return size - SUM * -(-size // (BLOCK + SUM))

    @cached_property
    def size(self) -> int:
        """Number of values."""
        return self.num_bytes // self.dtype.itemsize

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> np.ndarray:
        begin, end, _ = part.indices(self.size)
        if begin >= end:
            return np.empty(0, self.dtype)
        size = self.dtype.itemsize
        first, last = begin * size // BLOCK, (end * size - 1) // BLOCK
        file = _recently_opened(self.path).fileno()
        data = os.pread(file, min((last + 1) * BLOCK, self.num_bytes) - first * BLOCK, first * BLOCK)
        sums = os.pread(file, (last + 1 - first) * SUM, self.num_bytes + first * SUM)
        if sums != checksums(data):
            Path(self.path).unlink(missing_ok=True)
            _recently_opened.cache_clear()
            raise DataError(
                f"cache_dir: {self.path} is damaged (its checksum does not fit) and has been removed: start again, and"
                " it is made anew"
            )
        return np.frombuffer(data, self.dtype, end - begin, begin * size - first * BLOCK)


def checksums(data: bytes) -> bytes:
    """Those of each block."""
    view = memoryview(data)
    return array("I", [zlib.crc32(view[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]).tobytes()


class SummedFile(AbstractContextManager["SummedFile"]):
    """A file that is written from its beginning to its end; closing it adds the checksums."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.sums = bytearray()
        self.rest = b""

    def write(self, data: bytes) -> None:
        """Appends the bytes, and the checksum of each block that they complete."""
        self.file.write(data)
        data = self.rest + data
        whole = len(data) // BLOCK * BLOCK
        self.sums += checksums(data[:whole])
        self.rest = data[whole:]

    def __exit__(self, kind: object, *_: object) -> None:
        _recently_opened.cache_clear()  # this file may take the place of one that is open
        with self.file:
            if kind is None:
                self.file.write(self.sums + checksums(self.rest))


def close_files() -> None:
    """Closes what this process has open: the disk keeps a removed file for as long."""
    _recently_opened.cache_clear()


@lru_cache(maxsize=OPEN_FILES)
def _recently_opened(path: str) -> BinaryIO:
    return Path(path).open("rb", buffering=0)  # closed when it is no longer among the recent ones
