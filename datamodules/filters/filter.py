"""What a filter of texts is: it looks at one document and says what is wrong with it.

The measures and their bounds are those of MassiveText (Rae et al., "Scaling Language Models", arXiv:2112.11446), C4
(Raffel et al., arXiv:1910.10683) and FineWeb (Penedo et al., arXiv:2406.17557), which were found on web pages in
English. Code, tables, poems and other languages need other ones, or fewer filters.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, cast

from datamodules.errors import DataError

BLANK_LINES = re.compile(r"\n\s*\n")


class Text:
    """A document, with what several filters look at, each found once."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        """What stands between spaces, signs included."""
        return self.text.split()

    @cached_property
    def lines(self) -> list[str]:
        """Those that are not blank, without the spaces around them."""
        return [line for line in map(str.strip, self.text.split("\n")) if line]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What stands between blank lines."""
        return [part for part in map(str.strip, BLANK_LINES.split(self.text)) if part]


class TextFilter(ABC):  # no dataclass itself, or jsonargparse would take no subclass for it
    """Takes documents out of what is trained on. A subclass is a dataclass, whose fields are its settings.

    The cache holds what the filters made of the data under their names and settings. Who changes the code of an own
    filter changes a setting of it too, such as a version.
    """

    name: ClassVar[str]
    """In reports."""

    def check(self) -> None:  # noqa: B027 (most have nothing to check)
        """Raise `DataError` for settings that make no sense, or a library that is missing."""


@dataclass(frozen=True)
class DocumentFilter(TextFilter):
    """Decides about a document by itself."""

    @abstractmethod
    def fault(self, text: Text) -> str:
        """What is wrong with it, in a word or two that go behind "3"; empty where it stays."""


@dataclass(frozen=True)
class Bounded(DocumentFilter):
    """Keeps the documents of which a number lies within bounds, both included.

    Args:
        min: no bound where it is None.
        max: no bound where it is None.
    """

    min: float | None = None
    max: float | None = None

    too_low: ClassVar[str] = "too low"
    too_high: ClassVar[str] = "too high"

    @abstractmethod
    def measure(self, text: Text) -> float:
        """The number."""

    def check(self) -> None:
        """As every filter."""
        if self.min is not None and self.max is not None and self.min > self.max:
            raise DataError(f"filters: min of {type(self).__name__}, {self.min}, is above its max, {self.max}")

    def fault(self, text: Text) -> str:
        """See `DocumentFilter`."""
        value = self.measure(text)
        if self.min is not None and value < self.min:
            return self.too_low
        return self.too_high if self.max is not None and value > self.max else ""


def share(count: int, total: int) -> float:
    """Of a total; 0 of nothing."""
    return count / total if total else 0.0


def spec_of(each: TextFilter) -> dict[str, Any]:
    """The class and the settings of a filter, as JSON."""
    return {"class_path": f"{type(each).__module__}.{type(each).__qualname__}", "init_args": asdict(cast(Any, each))}


def filter_of(spec: dict[str, Any]) -> TextFilter:
    """The filter of a `spec_of`."""
    module, _, name = spec["class_path"].rpartition(".")
    return getattr(import_module(module), name)(**spec["init_args"])


def check_filters(filters: Sequence[TextFilter]) -> None:
    """Raises `DataError` where a filter has wrong settings, or is no dataclass."""
    for each in filters:
        kind = type(each)
        if "__dataclass_params__" not in vars(kind) or "." in kind.__qualname__:
            raise DataError(
                f"filters: {kind.__qualname__} has to be a dataclass at the top of a module, as every TextFilter: other"
                " processes make it again from its fields"
            )
        each.check()
