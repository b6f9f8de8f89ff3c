"""Commands that run other commands, each in a process of its own, which leaves no memory behind for the next one."""

import ctypes
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

FORWARDED = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
SET_PARENT_DEATH_SIGNAL = 1  # prctl(2)


def run_child(arguments: list[str], environment: dict[str, str]) -> int:
    """Run a command in a process of its own, which gets this one's signals; returns its exit code as a shell would.

    Ctrl-C reaches both at once. Where this process is killed, the other one is told to stop.
    """
    with _forwarded() as (received, children):
        if received:
            return 128 + received[0]
        command = [sys.executable, "-m", "llm_lightning", *arguments]
        child = subprocess.Popen(command, env=environment, preexec_fn=_dies_with_parent())
        children.append(child)
        if received:
            child.send_signal(received[0])
        code = child.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _forwarded() -> Iterator[tuple[list[int], list["subprocess.Popen[bytes]"]]]:
    """The signals that came, and the processes that get them."""
    received: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in children:
            child.send_signal(number)

    former = {number: signal.signal(number, forward) for number in FORWARDED}
    former[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield received, children
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _dies_with_parent() -> Any:
    """What a child does before it begins; Linux alone can do it."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(SET_PARENT_DEATH_SIGNAL, int(signal.SIGTERM))
