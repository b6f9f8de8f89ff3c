"""What a chat template may cost: it comes with a model, from anybody, and runs once for every record."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SECONDS = 10  # of computing for one record; a real template takes under a thousandth
MEMORY = 1 << 30  # bytes beside what the process has already
FREE_CHARACTERS, MOST_TIMES_LONGER = 1 << 20, 64


class CostError(
    BaseException
):  # Jinja takes any `Exception` in a constant expression for a reason to try it again later
    """A template takes too long, or makes too much; the text says so."""


@contextmanager
def bounded() -> Iterator[None]:
    """Ends what takes too much time or memory, by an error.

    Time is the process's own, so that a busy machine ends nothing; it is watched in the main thread alone, where Python
    handles signals. Records are written down nowhere else: by the process that prepares the data, by those that
    tokenize for it, each in its main thread, and by the loop of `predict`; loaders' workers and threads get token ids.
    A program that prepares data in a thread of its own has the limits of memory and length alone. Memory is watched on
    Linux alone.

    Raises:
        CostError: it takes longer than `SECONDS`, or more than `MEMORY`.
    """
    try:
        with _bounded_memory(), _bounded_time():
            yield
    except MemoryError as error:
        raise CostError(f"it takes more than {MEMORY >> 20:,} MB of memory") from error


def check_length(text: str, num_characters: int) -> None:
    """Raises `CostError` where the text is far longer than what it was made of."""
    if len(text) > FREE_CHARACTERS + MOST_TIMES_LONGER * num_characters:
        raise CostError(f"it makes {len(text):,} characters of a record of {num_characters:,}")


@contextmanager
def _bounded_time() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGVTALRM"):
        yield
        return
    running = True

    def out_of_time(number: int, frame: FrameType | None) -> None:
        if running:
            raise CostError(f"it is not done after {SECONDS} seconds")

    before = signal.signal(signal.SIGVTALRM, out_of_time)
    left = signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, SECONDS)
    try:
        yield
        running = False
    finally:
        running = False
        signal.setitimer(signal.ITIMER_VIRTUAL, *left)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    given = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([most, *given]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
