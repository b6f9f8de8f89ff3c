"""Filters that look at words: how many, how long, and what they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from datamodules.filters.filter import Bounded, Text, share

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


@dataclass(frozen=True)
class Words(Bounded):
    """The number of words. By default 50 to 100,000, as MassiveText's."""

    min: float | None = 50
    max: float | None = 100_000

    name: ClassVar[str] = "words"
    too_low: ClassVar[str] = "too short"
    too_high: ClassVar[str] = "too long"

    def measure(self, text: Text) -> float:
        """See `Bounded`."""
        return len(text.words)


@dataclass(frozen=True)
class WordLength(Bounded):
    """The mean length of the words in characters. By default 3 to 10, as MassiveText's."""

    min: float | None = 3
    max: float | None = 10

    name: ClassVar[str] = "word_length"
    too_low: ClassVar[str] = "of short words"
    too_high: ClassVar[str] = "of long words"

    def measure(self, text: Text) -> float:
        """See `Bounded`."""
        return share(sum(map(len, text.words)), len(text.words))


@dataclass(frozen=True)
class Symbols(Bounded):
    """Number signs (#) or ellipses for each word, whichever are more. By default at most 0.1, as MassiveText's."""

    max: float | None = 0.1

    name: ClassVar[str] = "symbols"
    too_high: ClassVar[str] = "full of symbols"

    def measure(self, text: Text) -> float:
        """See `Bounded`."""
        ellipses = text.text.count("...") + text.text.count("\u2026")
        return share(max(text.text.count("#"), ellipses), len(text.words))


@dataclass(frozen=True)
class Alphabetic(Bounded):
    """The share of words that have a letter. By default at least 0.8, as MassiveText's."""

    min: float | None = 0.8

    name: ClassVar[str] = "alphabetic"
    too_low: ClassVar[str] = "of numbers and signs"

    def measure(self, text: Text) -> float:
        """See `Bounded`."""
        # Most words are letters throughout, which is quick to see.
        return share(sum(word.isalpha() or any(map(str.isalpha, word)) for word in text.words), len(text.words))


@dataclass(frozen=True)
class StopWords(Bounded):
    """How many different stop words there are: running text has some. By default at least 2, as MassiveText's.

    Args:
        words: in lower case; other languages need their own.
    """

    min: float | None = 2
    words: Sequence[str] = STOP_WORDS

    name: ClassVar[str] = "stop_words"
    too_low: ClassVar[str] = "without stop words"

    @cached_property
    def _words(self) -> frozenset[str]:
        return frozenset(self.words)

    def measure(self, text: Text) -> float:
        """See `Bounded`."""
        return len(self._words.intersection(text.text.lower().split()))
