"""The windows of a stream as the training process sees them: made ahead of time, kept while they are read, removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from datamodules.errors import DataError
from datamodules.filters.funnel import table
from datamodules.streaming.builder import nothing_to_train_on
from datamodules.streaming.plan import Cursor, Plan
from datamodules.streaming.window import Pin, Window, remove_unpinned


class Filler:
    """A process that fills windows, one after the other.

    It is started at once and not in a thread: a process that is forked meanwhile, as a loader's workers are, would keep
    the pipe open by which it is seen to have started.

    Attributes:
        num_turns: of files that come in while the stream is read, how many deliveries it knows.
    """

    def __init__(self, plan: Plan, root: Path) -> None:
        self.plan = plan
        self.root = root
        self.num_turns = 0
        self._process = self._start()
        self._jobs: SimpleQueue[tuple[dict[str, Any], Future[None]]] = SimpleQueue()
        Thread(target=self._work, daemon=True).start()  # no end of this process waits for a job

    def submit(self, number: int | None, begin: Cursor, digests: dict[int, str], **more: Any) -> Future[None]:
        """Fill a window; `number` None: what validates. Its future raises what went wrong."""
        future: Future[None] = Future()
        self._jobs.put(({"number": number, "begin": begin, "digests": digests, **more}, future))
        return future

    def _work(self) -> None:
        while True:
            job, future = self._jobs.get()
            try:
                self._fill(job)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)

    def _fill(self, job: dict[str, Any]) -> None:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        print(json.dumps(job), file=process.stdin, flush=True)
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that reads the stream ended with code {process.wait()}")
        outcome = json.loads(answer)
        if "error" in outcome:
            raise DataError(outcome["error"])
        if "failure" in outcome:
            raise RuntimeError(f"the process that reads the stream failed:\n{outcome['failure']}")

    def _start(self) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "datamodules.streaming.worker"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )  # its messages go where this one's go
        assert process.stdin is not None
        setup = {"plan": self.plan.to_json(), "root": str(self.root)}
        print(json.dumps(setup), file=process.stdin, flush=True)
        return process

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.__exit__(None, None, None)


class Place(NamedTuple):
    """Where a window stands.

    Args:
        number: of the window, from the beginning of the stream.
        sample: its first row, among all that were served before.
        begin: where in the stream it begins.
        digests: of the files that it begins and ends in, where they were read before.
    """

    number: int
    sample: int
    begin: Cursor
    digests: dict[int, str]


START = Place(0, 0, Cursor(), {})


class Opened(NamedTuple):
    """A window that is in use, and how many blank rows follow its own."""

    place: Place
    facts: dict[str, Any]
    pin: Pin
    num_blank: int

    @property
    def end(self) -> int:
        """The first sample behind it."""
        return self.place.sample + self.facts["num_rows"] + self.num_blank

    @property
    def next(self) -> Place:
        """Where the next one stands."""
        return Place(self.place.number + 1, self.end, self.facts["end"], self.facts["digests"])


class Windows:
    """The windows in use, in their order; while they are read the next one is made.

    Args:
        plan: the stream.
        root: where streams are kept.
        filler: makes windows; None where another process of this machine does.
        first: where to begin.
        say: is given what a user should know.
    """

    def __init__(
        self, plan: Plan, root: Path, filler: Filler | None, first: Place = START, say: Callable[[str], object] = print
    ) -> None:
        self.plan = plan
        self.say = say
        self.folder = root / plan.key()
        self.filler = filler
        self.opened: list[Opened] = []
        self._next = first
        self._pin = Pin(self._folder_of(first))
        self._coming = self._ask_for(first)
        self._empty_since_turn = first.begin.turn

    def _folder_of(self, place: Place) -> Path:
        return self.folder / str(place.number)

    def _ask_for(self, place: Place) -> Future[None] | None:
        return self.filler.submit(place.number, place.begin, place.digests) if self.filler is not None else None

    def reach(self, sample: int) -> None:
        """Have all windows up to that of a sample.

        Raises:
            DataError: the stream cannot be read.
        """
        while not self.opened or sample >= self.opened[-1].end:
            self._open_next()

    def _open_next(self) -> None:
        place = self._next
        window = Window(self._folder_of(place))
        window.wait(self._coming)
        facts = window.facts()
        opened = Opened(place, facts, self._pin, self._num_blank(place, facts))
        self.opened.append(opened)
        self._note(opened)
        # Kept before it is made, so that nobody can remove it between being made and being kept.
        self._next = opened.next
        self._pin = Pin(self._folder_of(self._next))
        self._coming = self._ask_for(self._next)

    def _num_blank(self, place: Place, facts: dict[str, Any]) -> int:
        return 0

    def _note(self, opened: Opened) -> None:
        begin, end = opened.facts["begin"], opened.facts["end"]
        if opened.facts["num_rows"]:
            self._empty_since_turn = end.turn
        elif end.turn > self._empty_since_turn + 1:
            raise nothing_to_train_on(self.plan)
        self._tell_bad(opened)
        self._tell_filtered(opened)
        if begin == Cursor(begin.turn) and begin.turn:
            self.say(f"The stream was read to its end; it is read again, in another order (turn {begin.turn + 1})")

    def _tell_bad(self, opened: Opened) -> None:
        if opened.facts["num_bad"]:
            self.say(f"{opened.facts['num_bad']:,} bad records were skipped; the first: {opened.facts['first_bad']}")

    def _tell_filtered(self, opened: Opened) -> None:
        funnel = opened.facts.get("filtered")
        if funnel and funnel["documents"]:  # else all was read ahead for the window before
            for line in table(funnel):
                self.say(line)

    def leave(self, sample: int) -> None:
        """Remove the windows that end before a sample."""
        while self.opened and self.opened[0].end <= sample:
            gone = self.opened.pop(0)
            gone.pin.release()
            remove_unpinned(self._folder_of(gone.place))

    def at(self, sample: int) -> Place:
        """The window of a sample that was served, or that comes next."""
        for opened in self.opened:
            if opened.place.sample <= sample < opened.end:
                return opened.place._replace(digests=opened.place.digests | opened.facts["digests"])
        return self._next

    def close(self) -> None:
        """Keep nothing more. What is on disk stays, for a run that goes on, until another stream is opened."""
        for pin in [*(opened.pin for opened in self.opened), self._pin]:
            pin.release()


def tidy(root: Path, kept: Sequence[Path] = ()) -> None:
    """Removes what streams have left behind: of those that nobody reads, all but validation sets.

    Args:
        kept: folders that stay.
    """
    for folder in [*root.glob("*/[0-9]*"), *root.glob("copies-*")]:
        if folder.is_dir() and folder not in kept:
            remove_unpinned(folder)
