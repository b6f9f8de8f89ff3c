"""Arrays that lie in files and are read piece by piece."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

OPEN_FILES = 256  # of this process; a corpus may have thousands of shards, and 1,024 open files are a common limit


@dataclass(frozen=True)
class FileArray:
    """A 1-D array of plain values in a file. Slicing reads that slice and nothing else.

    Reads rather than a memory map: pages of a map count as the process's own memory once they were touched, so that
    an epoch over tens of GB would look, to a scheduler that limits memory, as if it took tens of GB.
    """

    path: str
    dtype: np.dtype

    @cached_property
    def size(self) -> int:
        """Number of values."""
        return Path(self.path).stat().st_size // self.dtype.itemsize

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> np.ndarray:
        begin, end, _ = part.indices(self.size)
        size = self.dtype.itemsize
        data = os.pread(_recently_opened(self.path).fileno(), (end - begin) * size, begin * size)
        return np.frombuffer(data, self.dtype)


@lru_cache(maxsize=OPEN_FILES)
def _recently_opened(path: str) -> BinaryIO:
    return Path(path).open("rb", buffering=0)  # closed when it is no longer among the recent ones
