"""Filters that compare documents: they note a few bytes of each, and look at those of all once all were read."""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np

from datamodules.errors import DataError
from datamodules.filters.filter import TextFilter
from datamodules.records.words import words_of
from datamodules.storage.hashing import mix, text_hash
from datamodules.storage.near_duplicates import wording_hash
from datamodules.storage.similarity import NUM_BANDS, NUM_PERM, ROW, most_similar, repeated, signatures

Signs = Callable[[], Iterator[np.ndarray]]
"""What was noted of all documents in their order, in pieces, anew at each call."""


@dataclass(frozen=True)
class DuplicateFilter(TextFilter):
    """Drops documents for what earlier ones say. Earlier is what comes first in the list of sources, files and records.

    Attributes:
        dtype: of what is noted of a document.
        reason: why it is dropped, in words that go behind "3".
    """

    dtype: ClassVar[np.dtype]
    reason: ClassVar[str]

    @abstractmethod
    def signs(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) of `dtype`, what is noted of each."""

    def noting(self) -> DuplicateFilter:
        """The same with defaults where a setting changes nothing of what is noted: documents need not be read again."""
        return self

    @abstractmethod
    def earlier(self, signs: Signs, folder: Path) -> np.ndarray:
        """(N,) int64, for each document the place of the earlier one for which it is dropped; -1 where it stays.

        Args:
            signs: of all documents that reach the filter.
            folder: for files, while it runs.
        """


@dataclass(frozen=True)
class ExactDuplicates(DuplicateFilter):
    """Keeps the first of the documents that say the same, whatever their case, punctuation and spaces.

    Told by 64 bits of a hash: of ten million different documents two have the same one in 1 of 370,000 corpora.
    """

    name: ClassVar[str] = "exact_duplicates"
    dtype: ClassVar[np.dtype] = np.dtype("<u8")
    reason: ClassVar[str] = "said before"

    def signs(self, texts: Sequence[str]) -> np.ndarray:
        """See `DuplicateFilter`."""
        return np.array([wording_hash(text) for text in texts], np.uint64)

    def earlier(self, signs: Signs, folder: Path) -> np.ndarray:
        """See `DuplicateFilter`."""
        hashes = np.concatenate([np.empty(0, np.uint64), *signs()])
        order, follows, firsts = repeated(hashes)
        earlier = np.full(len(hashes), -1)
        earlier[order[follows]] = order[firsts]
        return earlier


@dataclass(frozen=True)
class NearDuplicates(DuplicateFilter):
    """Drops documents that resemble an earlier one, whether that one stays or not.

    What they have in common is the share of runs of words that are in both, of those that are in either (their Jaccard
    similarity), by MinHash with a standard error of at most 0.045; see `storage.similarity`. A document is 225 bytes on
    disk.

    Args:
        similarity: what has more in common is dropped.
        run: words of a run. 5 is what FineWeb takes.
    """

    similarity: float = 0.7
    run: int = 5

    name: ClassVar[str] = "near_duplicates"
    dtype: ClassVar[np.dtype] = ROW
    reason: ClassVar[str] = "that resemble an earlier one"

    def check(self) -> None:
        """As every filter."""
        if not 0 <= self.similarity <= 1:
            raise DataError(f"filters: similarity of NearDuplicates goes from 0 to 1, not {self.similarity}")
        if self.run < 1:
            raise DataError(f"filters: run of NearDuplicates is at least one word, not {self.run}")

    def signs(self, texts: Sequence[str]) -> np.ndarray:
        """See `DuplicateFilter`."""
        return signatures([word_runs(text, self.run) for text in texts])

    def noting(self) -> DuplicateFilter:
        """See `DuplicateFilter`."""
        return replace(self, similarity=NearDuplicates.similarity)

    def earlier(self, signs: Signs, folder: Path) -> np.ndarray:
        """See `DuplicateFilter`."""
        with TemporaryDirectory(dir=folder) as scratch:
            columns = _Columns(Path(scratch), signs)
            nearest = most_similar(columns.count, columns.band, columns.signatures)
        return np.where(nearest.similarity > self.similarity, nearest.place, -1)


def word_runs(text: str, length: int) -> np.ndarray:
    """(P,) uint64, hashes of all runs of so many words, at least one: a text that is shorter is one run."""
    # Of a text without letters its signs are all it says.
    hashes = [zlib.crc32(word.encode()) for word in words_of(text)] or [text_hash(text.encode())]
    words = np.array(hashes, np.uint64)
    runs = words
    for place in range(1, min(length, len(words))):
        runs = mix(runs[:-1], np.uint64(0)) ^ words[place:]
    return mix(runs, np.uint64(0))


class _Columns:
    """Signatures in files, a band in each: one that is sorted is read from its beginning to its end."""

    def __init__(self, folder: Path, signs: Signs) -> None:
        self.folder = folder
        self.count = 0
        names = [*map(str, range(NUM_BANDS)), "signatures"]
        files = [(folder / name).open("wb") for name in names]
        try:
            for rows in signs():
                self.count += len(rows)
                for file, column in zip(files, [*rows["bands"].T, rows["signature"]], strict=True):
                    file.write(column.tobytes())
        finally:
            for file in files:
                file.close()

    def band(self, number: int) -> np.ndarray:
        """What it says of all documents."""
        return np.fromfile(self.folder / str(number), np.uint32)

    def signatures(self, places: np.ndarray) -> np.ndarray:
        """(P, NUM_PERM) uint8. The map is made anew, so that its pages do not stay in this process's memory."""
        return np.memmap(self.folder / "signatures", np.uint8, "r", shape=(self.count, NUM_PERM))[places]
