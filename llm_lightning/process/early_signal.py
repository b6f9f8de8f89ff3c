"""SIGUSR1 before and after `GracefulStop` listens to it: its default kills, and imports take seconds."""

import signal
from types import FrameType


class Noted:
    """A signal handler that remembers.

    Attributes:
        received: Whether the signal came; `GracefulStop` reads it as it takes over.
    """

    received = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Remember that the signal came."""
        self.received = True


def note_early_signal() -> None:
    """Note SIGUSR1 instead of being killed by it, where nobody handles it yet and the platform has it."""
    if hasattr(signal, "SIGUSR1") and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, Noted())
