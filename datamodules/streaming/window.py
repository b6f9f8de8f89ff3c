"""A window of a stream on disk: tokens that are shuffled together, the rows that they make, and where it goes on."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.storage.rows import RowIndex
from datamodules.storage.shards import Shard
from datamodules.streaming.plan import Cursor
from llm_lightning_safety.seals import read_json, write_json

SHARD, FACTS = "tokens", "window.json"
SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_BEFORE_WAITING_IS_ANNOUNCED = 10


@dataclass(frozen=True)
class Window:
    """A folder with one shard and one row index, written to its end.

    Args:
        folder: its name is the window's number, counted from the beginning of the stream.
    """

    folder: Path

    @property
    def shard(self) -> Shard:
        """Its tokens."""
        return Shard(str(self.folder / SHARD))

    @property
    def rows(self) -> RowIndex:
        """Its rows."""
        return RowIndex(self.folder)

    @property
    def is_there(self) -> bool:
        """Whether it can be read."""
        return (self.folder / FACTS).exists() and self.shard.complete

    def facts(self) -> dict[str, Any]:
        """`num_rows`; `begin` and `end`, `Cursor`s; `digests`, of the file that it ends in; `num_bad`,
        `first_bad`; with filters `filtered`, a funnel of what was read for it, some texts ahead.
        """
        facts = read_json(self.folder / FACTS)
        digests = {int(number): digest for number, digest in facts["digests"].items()}
        return facts | {"begin": Cursor(*facts["begin"]), "end": Cursor(*facts["end"]), "digests": digests}

    def wait(self, made: Future[None] | None) -> None:
        """Until it is there.

        Args:
            made: raises what went wrong; None where another process makes it.
        """
        begun = time.monotonic()
        while not self.is_there:
            if made is not None:
                made.result()
                if not self.is_there:
                    raise RuntimeError(f"{self.folder} was removed while it was wanted")
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)
            if time.monotonic() - begun > SECONDS_BEFORE_WAITING_IS_ANNOUNCED:
                begun = float("inf")
                print(f"Waiting for {self.folder}", file=sys.stderr, flush=True)

    @staticmethod
    def write_facts(folder: Path, facts: dict[str, Any]) -> None:
        """Say what is in a folder that is written otherwise."""
        write_json(folder / FACTS, facts)


class Pin:
    """Keeps a folder of this machine's processes from being removed, for as long as this one lives or wants it.

    The kernel's lock ends with the process, `kill -9` included. On a disk that knows no such locks nothing is kept.
    """

    def __init__(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._file: int | None = _locked(_lock_of(folder), fcntl.LOCK_SH)

    def release(self) -> None:
        """No longer wanted by this process, nor by those that it forked."""
        if self._file is not None:
            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)
            os.close(self._file)
            self._file = None


def remove_unpinned(folder: Path) -> bool:
    """Removes a folder unless somebody keeps it; whether it is gone."""
    with _alone(folder) as is_free:
        if is_free:
            shutil.rmtree(folder, ignore_errors=True)
            _lock_of(folder).unlink(missing_ok=True)
        return is_free


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    try:
        file = _locked(_lock_of(folder), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(file)


def _locked(path: Path, how: int) -> int:
    """An open file under a lock; raises `BlockingIOError`."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, how)
        except BlockingIOError:
            os.close(file)
            raise
        except OSError:  # a disk that knows no locks
            return file
        with suppress(FileNotFoundError):
            if os.fstat(file).st_ino == path.stat().st_ino:
                return file
        os.close(file)  # another process removed it meanwhile


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")
