"""A folder that files come into: which of them are whole, new, and can be read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple

from datamodules.errors import DataError
from datamodules.records.text_source import RECORDS_PEEKED, texts_of
from datamodules.sources.bad_records import BadRecords, OnBadRecord
from datamodules.sources.formats import FORMATS, format_of
from datamodules.sources.units import Unit
from datamodules.streaming.remote import digest_of, local_unit, mark_of

STOP = "STOP"
"""A file of this name in the folder ends the run, once everything beside it was trained on."""

Taken = Mapping[str, Any]
"""A file that was taken, in plain values: `name` in the folder; `size`, and `digest` of that and its time; `format` and
`column`; the digest of its `content`."""


class Sight(NamedTuple):
    """A file as it was seen last.

    Args:
        state: its length in bytes, and the time of its last change.
        since: when it was first seen so, by this process's own clock, as that of a file server may differ.
        is_left_out: whether it was looked into, and is not to be taken as it is.
    """

    state: tuple[int, int]
    since: float
    is_left_out: bool = False


class WatchedFolder:
    """Looks for files that are whole.

    A file is whole once its length and time have been the same for so many seconds. Files whose name, or that of a
    folder above them, begins with a dot, and those of no known format (`part.jsonl.tmp`), are not looked at, so that
    whoever writes under such a name and then renames cannot be read too early.

    Args:
        path: the folder; those in it are looked into.
        settle: seconds.
        column: where a record's text is.
        on_bad_record: as everywhere.
        say: is given what a user should know.
    """

    def __init__(
        self, path: Path, settle: float, column: str, on_bad_record: OnBadRecord, say: Callable[[str], object]
    ) -> None:
        self.path = path
        self.settle = settle
        self.column = column
        self.on_bad_record = on_bad_record
        self.say = say
        self._sights: dict[str, Sight] = {}
        self._compared: dict[str, tuple[int, int] | None] = {}  # of files that were taken, the state at the last look

    @property
    def stop_asked(self) -> bool:
        """Whether somebody put a file `STOP` there."""
        return (self.path / STOP).exists()

    @property
    def is_settling(self) -> bool:
        """Whether there was a file at the last look that is not whole yet."""
        return any(not sight.is_left_out and sight.state[0] for sight in self._sights.values())

    def look(self, taken: Mapping[str, Taken]) -> list[Taken]:
        """The files that are whole and new, in the order of their names.

        Args:
            taken: by name, those that were taken before.
        """
        there = dict(self._files())
        self._compare(taken, there)
        now, found = time.monotonic(), []
        contents = {one["content"]: name for name, one in taken.items()}
        before, self._sights = self._sights, {}
        for name, state in there.items():
            if name in taken:
                continue
            sight = before.get(name)
            if sight is None or sight.state != state:
                sight = Sight(state, now)
            if state[0] and not sight.is_left_out and now - sight.since >= self.settle:
                one = self._opened(name, contents)
                if one is not None:
                    contents[one["content"]] = name
                    found.append(one)
                    continue
                sight = sight._replace(is_left_out=True)
            self._sights[name] = sight
        return found

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path)
            if any(part.startswith(".") for part in name.parts) or not format_of(path.name):
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:  # renamed meanwhile
                continue
            if S_ISREG(stat.st_mode):
                yield str(name), (stat.st_size, stat.st_mtime_ns)

    def _opened(self, name: str, contents: Mapping[str, str]) -> Taken | None:
        """A whole file as it is to be taken; None where it is a copy, or cannot be read."""
        path = self.path / name
        try:
            found = local_unit(str(path))
            unit = replace(found, column=self.column) if FORMATS[found.format].columns else found
            content = digest_of(path)
            if content in contents:
                self.say(f"{name} is left out: it is a copy of {contents[content]}, which was taken")
                return None
            for _ in islice(texts_of(unit, BadRecords(unit, self.on_bad_record)), RECORDS_PEEKED):
                pass
        except (DataError, OSError) as error:
            self.say(f"{name} is left out until it changes: {error}")
            return None
        return {
            "name": name, "digest": unit.digest, "size": unit.size, "format": unit.format, "column": unit.column,
            "content": content,
        }  # fmt: skip

    def _compare(self, taken: Mapping[str, Taken], there: Mapping[str, tuple[int, int]]) -> None:
        other = [name for name in taken if self._compared.get(name, ()) != there.get(name)]
        self._compared |= {name: there.get(name) for name in other}
        gone = [name for name in other if name not in there]
        if gone:
            names = shortened(gone)
            self.say(f"Gone since they were taken: {names}. A run that goes on may have to read the newest again")
        for name in (name for name in other if name in there and mark_of(*there[name]) != taken[name]["digest"]):
            self.say(f"{name} has changed since it was taken, and is not taken again; what is new needs a new name")


def shortened(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def unit_of(taken: Taken, folder: Path) -> Unit:
    """A file that was taken, as it is read."""
    path = str(folder / taken["name"])
    return Unit(path, taken["format"], taken["digest"], size=taken["size"], column=taken["column"])
