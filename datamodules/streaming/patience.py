"""Calls to servers that hang, fail and come back: each ends in time, and is made again for so long and no longer."""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from datamodules.errors import DataError
from llm_lightning_safety.redaction import redact

T = TypeVar("T")

LONGEST_CALL = 60.0  # seconds: 16 MiB at 280 KB a second
FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0
WORTH_ANOTHER_TRY = {408, 425, 429}  # of the statuses that blame the caller: it took too long, too early, too often
MISTAKES = (LookupError, TypeError, AttributeError, ImportError, NotImplementedError, ValueError)


class Patience:
    """How long to wait for a server.

    Args:
        seconds: for which a call that fails is made again, at growing intervals.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.of_a_call = min(LONGEST_CALL, max(seconds / 3, 0.1))

    def call(self, what: str, function: Callable[[], T], timed: bool = True) -> T:
        """What the function returns.

        Args:
            what: it is about, without secrets, for messages.
            function: may be left running where it does not end in time.
            timed: whether it may take no more than `of_a_call` seconds.

        Raises:
            DataError: it failed as it always would, or until patience was at its end.
        """
        deadline = time.monotonic() + self.seconds
        for tries in itertools.count(1):
            try:
                return _within(self.of_a_call, function) if timed else function()
            except (DataError, *MISTAKES):
                raise
            # Each file system has exceptions of its own, and they share no class.
            except Exception as error:
                reason = _in_words(error, self.of_a_call)
                if _is_final(error):
                    raise DataError(f"path: {what}: {reason}") from None
            wait = min(FIRST_WAIT * 2**tries, LONGEST_WAIT) * random.uniform(0.5, 1)
            if time.monotonic() + wait > deadline:
                raise DataError(
                    f"path: {what} could not be read in {tries} tries over {self.seconds:g} s, at last because of:"
                    f" {reason}. The same command goes on from the last checkpoint; raise data.patience to wait longer"
                )
            print(f"{what}: {reason}; once more in {wait:.1f} s", file=sys.stderr, flush=True)
            time.sleep(wait)
        raise AssertionError


def _within(seconds: float, function: Callable[[], T]) -> T:
    """Most file systems bound the wait for a piece of a reply alone, some for nothing; so a thread is given up."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    Thread(target=run, daemon=True).start()
    return result.result(seconds)


def _status(error: BaseException | None) -> int | None:
    """The HTTP status of an error, or of what caused it, as the clients of the file systems keep it."""
    while error is not None:
        # aiohttp's name, httpx's and requests', and that of gcsfs; aiohttp has codes of its own beside them.
        code = getattr(error, "code", None) if type(error).__module__.startswith("gcsfs") else None
        for status in (
            getattr(error, "status", None),
            getattr(getattr(error, "response", None), "status_code", None),
            code,
        ):
            if isinstance(status, int) and 400 <= status < 600:
                return status
        error = error.__cause__
    return None


def _is_final(error: Exception) -> bool:
    status = _status(error)
    if status is not None:
        return status < 500 and status not in WORTH_ANOTHER_TRY
    if "Credentials" in type(error).__name__:
        return True
    # fsspec says of every failure to ask an http server about a file that there is none.
    return isinstance(error, FileNotFoundError | PermissionError) and error.__cause__ is None


def _in_words(error: Exception, seconds: float) -> str:
    status = _status(error)
    if status is not None:
        return f"HTTP {status}"
    cause = error.__cause__ or error
    if isinstance(cause, TimeoutError):
        return f"no reply within {seconds:g} s"
    if isinstance(cause, FileNotFoundError):
        return "there is no such file"
    return redact(f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}".rstrip(": "))
