"""Filters that look at lines: how they begin, how they end, and how short they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from datamodules.filters.filter import Bounded, DocumentFilter, Text, share

ELLIPSES = ("...", "\u2026")
BULLETS = ("\u2022", "\u2023", "\u25cf", "\u25e6", "\u25aa", "\u25a0", "\u00b7", "- ", "* ")
ENDS = (".", "!", "?", "\u2026", '"', "'", "\u201d", "\u2019", ".)", "!)", "?)", "\u3002", "\uff01", "\uff1f", "\u0964")


@dataclass(frozen=True)
class Ellipses(Bounded):
    """The share of lines that end in an ellipsis, as teasers do. By default at most 0.3, as MassiveText's."""

    max: float | None = 0.3

    name: ClassVar[str] = "ellipses"
    too_high: ClassVar[str] = "of lines that break off"

    def measure(self, text: Text) -> float:
        """See `Bounded`."""
        return share(sum(line.endswith(ELLIPSES) for line in text.lines), len(text.lines))


@dataclass(frozen=True)
class Bullets(Bounded):
    """The share of lines that begin with a bullet. By default at most 0.9, as MassiveText's."""

    max: float | None = 0.9

    name: ClassVar[str] = "bullets"
    too_high: ClassVar[str] = "of bullets"

    def measure(self, text: Text) -> float:
        """See `Bounded`."""
        return share(sum(line.startswith(BULLETS) for line in text.lines), len(text.lines))


@dataclass(frozen=True)
class LineEnds(Bounded):
    """The share of lines that end as a sentence does. By default at least 0.12, as FineWeb's.

    C4 drops the other lines one by one. Of text that is broken into lines of one width few lines end so.
    """

    min: float | None = 0.12

    name: ClassVar[str] = "line_ends"
    too_low: ClassVar[str] = "of lines without an end"

    def measure(self, text: Text) -> float:
        """See `Bounded`."""
        return share(sum(line.endswith(ENDS) for line in text.lines), len(text.lines))


@dataclass(frozen=True)
class ShortLines(Bounded):
    """The share of lines that are shorter than `length`, as menus and lists are. By default at most 0.67, as FineWeb's.

    Args:
        length: in characters.
    """

    max: float | None = 0.67
    length: int = 30

    name: ClassVar[str] = "short_lines"
    too_high: ClassVar[str] = "of short lines"

    def measure(self, text: Text) -> float:
        """See `Bounded`."""
        return share(sum(len(line) < self.length for line in text.lines), len(text.lines))


@dataclass(frozen=True)
class Phrases(DocumentFilter):
    """Drops documents that have one of some phrases, whatever its case. By default C4's "lorem ipsum".

    Args:
        phrases: C4 also drops documents with a curly bracket (`{`), since they are code.
    """

    phrases: Sequence[str] = ("lorem ipsum",)

    name: ClassVar[str] = "phrases"

    def fault(self, text: Text) -> str:
        """See `DocumentFilter`."""
        lower = text.text.lower()
        return next((f"with {phrase!r}" for phrase in self.phrases if phrase.lower() in lower), "")
