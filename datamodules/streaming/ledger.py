"""Which files of a watched folder were taken, in which order: on disk, so that all ranks and later starts agree."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from datamodules.streaming.watch import STOP, Taken, WatchedFolder, shortened
from llm_lightning_safety.seals import read_json, write_json

LONGEST_PAUSE = 1.0  # seconds between two looks


class NothingMoreError(Exception):
    """Nothing more comes; says why."""


class Ledger:
    """The deliveries of a folder: what each look found, in their order.

    The first rank looks and writes; the others read what it wrote. What was taken stays taken, so that a run that was
    killed goes on with the same files in the same order.

    Args:
        file: where it is written; None: nowhere.
        folder: to look into; None where another process does.
        idle: seconds without a new file after which nothing more is waited for; None: no end.
        say: is given what a user should know.

    Attributes:
        id: names it among all, so that nothing that was made by another one is taken for its own.
        is_waiting: whether a process waits in `wait_for`.
    """

    def __init__(
        self, file: Path | None, folder: WatchedFolder | None, idle: float | None, say: Callable[[str], object] = print
    ) -> None:
        self.file = file
        self.folder = folder
        self.idle = idle
        self.say = say
        self.id = uuid.uuid4().hex
        self.deliveries: list[list[Taken]] = []
        self.is_waiting = False
        self._ended: str | None = None

    def open(self, held: Sequence[list[Taken]] = ()) -> None:
        """Read what was written, and go on behind it.

        Args:
            held: the deliveries of a checkpoint. Where those that were written do not begin with them, they count.
        """
        self.read()
        if self.folder is None:
            return
        if self.deliveries[: len(held)] != list(held):
            self.id, self.deliveries = uuid.uuid4().hex, list(held)
        self._ended = None  # this start may find more
        self._write()

    def read(self) -> None:
        """What is on disk now; nothing where there is nothing that can be read."""
        with suppress(OSError, ValueError):
            if self.file is not None:
                there = read_json(self.file)
                self.id, self.deliveries, self._ended = there["id"], there["deliveries"], there["ended"]

    def _write(self) -> None:
        if self.file is not None:
            write_json(self.file, {"id": self.id, "deliveries": self.deliveries, "ended": self._ended})

    def has(self, number: int) -> bool:
        """Whether a delivery is there, after a look where it is the next one."""
        if number < len(self.deliveries):
            return True
        if self.folder is None:
            self.read()
        elif found := self.folder.look({one["name"]: one for files in self.deliveries for one in files}):
            self.deliveries.append(found)
            self._write()
            self.say(f"Taken: {shortened([one['name'] for one in found])}")
        return number < len(self.deliveries)

    def wait_for(self, number: int) -> None:
        """Until a delivery is there; raises `NothingMoreError` where it will not come."""
        self.is_waiting = True
        try:
            self._wait_for(number)
        finally:
            self.is_waiting = False

    def _wait_for(self, number: int) -> None:
        folder, begun, is_said = self.folder, time.monotonic(), False
        while True:
            # Asked before the look, which then sees whatever was there before it.
            stop_asked = folder is not None and folder.stop_asked
            if self.has(number):
                return
            if folder is not None and folder.is_settling:
                begun = time.monotonic()
            elif folder is not None:
                self._end_by(folder, stop_asked, time.monotonic() - begun)
            if self._ended is not None:
                raise NothingMoreError(self._ended)
            if folder is not None and not (folder.is_settling or is_said):
                self.say(f"Everything in {folder.path} is trained on; waiting for more")
                is_said = True
            settle = LONGEST_PAUSE if folder is None else folder.settle
            time.sleep(min(LONGEST_PAUSE, max(settle / 4, 0.02)))

    def _end_by(self, folder: WatchedFolder, stop_asked: bool, waited: float) -> None:
        """Write down why it ends now, where it does."""
        if stop_asked:
            self._ended = f"{folder.path / STOP} is there"
        elif self.idle is not None and waited >= self.idle:
            self._ended = f"no new file came in {self.idle:g} s"
        if self._ended is not None:
            self._write()
