"""Ctrl-C and SIGTERM end training at a step's end, with a checkpoint."""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from callbacks.errors import CallbackError
from callbacks.run_checkpoint import RunCheckpoint


class GracefulStop(Checkpoint):
    """Stops after the current optimizer step when a signal asks for it: all ranks save together, then fit ends.

    The signal's handler only sets a flag, since a collective operation or a save inside of it can deadlock. The ranks
    agree on the flag after each optimizer step, so that it is enough when one of them got the signal. No validation is
    run on the way out: who sends SIGTERM waits seconds, not minutes. A second Ctrl-C ends the process at once.

    Loader workers ignore the signals as long as they are forked; a worker that is to survive a SIGTERM sent to
    the whole process group has to ignore it by its own `worker_init_fn`, because torch installs its handler there.

    The checkpoint is one of the run's `RunCheckpoint`, which keeps as many as it is told; where the run has none, one
    with its defaults. As a `Checkpoint` this callback runs after all others.

    Args:
        signals: Names of the signals to listen to.

    Attributes:
        stopped: Whether this fit was ended by a signal.
        received: The signal, None where none came.

    Raises:
        CallbackError: A signal's name is unknown on this platform.
    """

    def __init__(self, signals: Sequence[str] = ("SIGINT", "SIGTERM")) -> None:
        unknown = [name for name in signals if name not in signal.Signals.__members__]
        if unknown:
            raise CallbackError(
                f"GracefulStop.signals: {unknown[0]!r} is no signal; use names such as SIGTERM or SIGUSR1."
            )
        self.signals = [signal.Signals[name] for name in signals]
        self.stopped = False
        self._training = False
        self.received: signal.Signals | None = None
        self._former_handlers: dict[signal.Signals, Any] = {}
        self._former_limits: tuple[Any, Any] = (None, None)
        self._pid = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # The workers that fit forks before `on_train_start` inherit the handler, which does nothing in them.
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self.stopped, self.received, self._pid = False, None, os.getpid()
            self._former_handlers = {number: signal.signal(number, self._on_signal) for number in self.signals}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning put its own handler in front, which broadcasts inside of it.
        for number in self._former_handlers:
            signal.signal(number, self._on_signal)
        self._training = True

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        if not trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            return
        path = _run_checkpoint(trainer).save(trainer)
        self._end_fit(trainer)
        self.stopped = True
        pl_module.print(f"Stopped at step {trainer.global_step}, saved {path}. Run the same command again to continue.")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = False

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._training = False

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._former_handlers.items():
            signal.signal(number, handler)
        self._former_handlers = {}
        if self.stopped:
            trainer.limit_val_batches, trainer.fit_loop.epoch_loop.min_steps = self._former_limits

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        if not self._training or (self.received is not None and number == signal.SIGINT):
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.received = signal.Signals(number)
        if number == signal.SIGINT and sys.stderr.isatty():
            # Unlike `print`, this cannot meet itself inside a write that the signal interrupted.
            os.write(2, b"\nStopping after this step; press Ctrl-C again to stop at once.\n")

    def _end_fit(self, trainer: Trainer) -> None:
        self._former_limits = trainer.limit_val_batches, trainer.fit_loop.epoch_loop.min_steps
        trainer.should_stop = True
        trainer.fit_loop.min_epochs = 0
        trainer.fit_loop.epoch_loop.min_steps = None
        trainer.limit_val_batches = 0  # Lightning validates once more when it is told to stop


def _run_checkpoint(trainer: Trainer) -> RunCheckpoint:
    given = (callback for callback in trainer.callbacks if isinstance(callback, RunCheckpoint))  # type: ignore[attr-defined]
    return next(given, RunCheckpoint())
