"""What one process reads from beginning to end, and what comes out of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Unit:
    """A part of a source: a range of a file, or a shard of a hub data set. Plain values, so that it can be sent.

    `start` and `stop` count what the format counts: bytes of text files, row groups of parquet, shards of a hub data
    set; (0, -1) is all of it. `digest` stands for the content, `size` (bytes) weighs the unit in progress bars.
    `column` holds the text; for conversations it is empty, and `shape` and `columns` say how to read a record.
    """

    path: str
    format: str
    digest: str
    start: int = 0
    stop: int = -1
    size: int = 0
    column: str = "text"
    name: str | None = None
    split: str = "train"
    shape: str = ""
    columns: dict[str, str | list[str]] | None = None


class Bad(NamedTuple):
    """Stands where a record cannot be read, and says why."""

    reason: str


def is_empty(value: Any) -> bool:
    """Whether an optional column counts as absent: null, blank text, or nothing in the list."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value == [] or value == {}


Place = int  # where a record is, in the format's own count; `Format.locate` turns it into words
Record = dict[str, Any]


class Row(dict[str, Any]):
    """A record of columnar data, which gives every object the keys of all: null stands for a key that it lacks."""


class Whole(dict[str, Any]):
    """An object in a `Row` that was stored as JSON, and so has its own keys alone: null is what it says."""


@dataclass(frozen=True)
class Format:
    """How files of one kind are cut, read, and pointed into."""

    split: Callable[[str], list[tuple[int, int, int]]]  # path -> (start, stop, size) of each unit
    read: Callable[[Unit], Iterator[tuple[Place, Record | Bad]]]
    locate: Callable[[Unit, Place], str]
    columns: bool = True  # False: a record is nothing but its text
