"""Filters that look at what a document says again: lines, paragraphs, and runs of words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from datamodules.errors import DataError
from datamodules.filters.filter import DocumentFilter, Text, share
from datamodules.storage.hashing import mix

COMMONEST = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


@dataclass(frozen=True)
class RepeatedLines(DocumentFilter):
    """Drops documents of which many lines or paragraphs were there before. The defaults are MassiveText's.

    Args:
        lines: share of the lines, at most.
        line_characters: share of all characters that these have, at most.
        paragraphs: the same of paragraphs.
        paragraph_characters: the same of paragraphs.
    """

    lines: float = 0.3
    line_characters: float = 0.2
    paragraphs: float = 0.3
    paragraph_characters: float = 0.2

    name: ClassVar[str] = "repeated_lines"

    def fault(self, text: Text) -> str:
        """See `DocumentFilter`."""
        if self._is_repeated(text, text.lines, self.lines, self.line_characters):
            return "of repeated lines"
        if self._is_repeated(text, text.paragraphs, self.paragraphs, self.paragraph_characters):
            return "of repeated paragraphs"
        return ""

    def _is_repeated(self, text: Text, parts: list[str], most: float, most_characters: float) -> bool:
        first = set(parts)
        if len(first) == len(parts):
            return False
        characters = sum(map(len, parts)) - sum(map(len, first))
        return share(len(parts) - len(first), len(parts)) > most or share(characters, len(text.text)) > most_characters


@dataclass(frozen=True)
class RepeatedRuns(DocumentFilter):
    """Drops documents of which many characters lie in runs of words (n-grams) that were there before.

    The defaults are MassiveText's. Shares are of the characters of all words; a word counts once, however many of the
    runs it is in.

    Args:
        commonest: for each length of a run in words, the share that the commonest such run may have.
        repeated: for each length, the share that all runs may have which were there before.
    """

    commonest: Mapping[int, float] = field(default_factory=lambda: dict(COMMONEST))
    repeated: Mapping[int, float] = field(default_factory=lambda: dict(REPEATED))

    name: ClassVar[str] = "repeated_runs"

    def __post_init__(self) -> None:
        # Keys come as texts out of JSON.
        for name in ("commonest", "repeated"):
            object.__setattr__(self, name, {int(length): most for length, most in getattr(self, name).items()})

    def check(self) -> None:
        """As every filter."""
        if wrong := [length for length in (*self.commonest, *self.repeated) if length < 1]:
            raise DataError(f"filters: RepeatedRuns counts runs of at least one word, not of {wrong[0]}")

    def fault(self, text: Text) -> str:
        """See `DocumentFilter`."""
        numbers: dict[str, int] = {}
        ids = np.array([numbers.setdefault(word, len(numbers)) for word in text.words], np.uint64)
        if len(numbers) == len(ids):
            return ""
        sizes = np.fromiter(map(len, text.words), np.int64, len(ids))
        codes, length = ids, 1
        for wanted in sorted({*self.commonest, *self.repeated}):
            while length < wanted and len(codes) > 1:
                codes, length = mix(codes[:-1], np.uint64(0)) ^ ids[length:], length + 1
            runs = _Runs(codes, wanted, sizes) if length == wanted else None
            if runs is None or not runs.any:
                return ""  # a longer run that is there twice has shorter ones that are
            if wanted in self.commonest and runs.commonest() > self.commonest[wanted]:
                return "that say a few words too often"
            if wanted in self.repeated:
                repeated = runs.repeated()
                if repeated > self.repeated[wanted]:
                    return "of repeated runs of words"
                if wanted >= max(self.commonest, default=0) and repeated <= min(self.repeated.values()):
                    return ""  # what lies in longer runs that repeat lies in these
        return ""


class _Runs:
    """All runs of so many words of a document.

    Args:
        codes: (P,) uint64, equal where runs are.
        length: in words.
        sizes: (W,) of the words, in characters.
    """

    def __init__(self, codes: np.ndarray, length: int, sizes: np.ndarray) -> None:
        self.order = np.argsort(codes, kind="stable")
        self.again = codes[self.order][1:] == codes[self.order][:-1]  # a run's later places follow its first one
        self.length = length
        self.sizes = sizes
        self.any = bool(self.again.any())

    def commonest(self) -> float:
        """The share of the run that has the most places."""
        firsts = np.flatnonzero(np.concatenate([[True], ~self.again]))
        counts = np.diff(firsts, append=len(self.order))
        most = int(counts.argmax())
        places = self.order[firsts[most] : firsts[most] + counts[most]]
        return self._share(places) if counts[most] > 1 else 0.0

    def repeated(self) -> float:
        """The share of all runs at their later places."""
        return self._share(self.order[1:][self.again])

    def _share(self, places: np.ndarray) -> float:
        size = len(self.sizes) + 1
        inside = np.cumsum(np.bincount(places, minlength=size) - np.bincount(places + self.length, minlength=size))
        return float(self.sizes[inside[:-1] > 0].sum() / self.sizes.sum())
