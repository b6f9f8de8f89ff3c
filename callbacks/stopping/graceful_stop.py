"""Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and a time limit end training at a step's end, with a checkpoint."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import psutil
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from callbacks.artifacts.run_checkpoint import RunCheckpoint
from callbacks.contract import Waits, offered
from callbacks.errors import CallbackError
from callbacks.phase import is_validating_fit
from callbacks.stopping.agreement import Agreement
from callbacks.trainer_parts import callbacks_of, datamodule_of
from callbacks.training_loop import Limits, end_fit, is_accumulating, num_val_batches, restore_limits

TIME_LIMIT = getattr(signal, "SIGUSR1", signal.SIGTERM)  # SLURM's word for a limit that is near, and so ours

HANG_UP = getattr(signal, "SIGHUP", None)


class GracefulStop(Checkpoint):
    """Stops at a step's end when a signal or a time limit asks for it: all ranks save together, then fit ends.

    The signal's handler only sets a flag, since a collective operation or a save inside of it can deadlock. The ranks
    agree on the flag after each optimizer step, so that it is enough when one of them got the signal; with several
    ranks they stop one step after it (see `Agreement`). A second Ctrl-C ends the process at once.

    A validation is left where it is, and begun anew by the run that goes on: who sends SIGTERM waits seconds, not
    minutes. None is run on the way out.

    Where the data waits for more to come, which may take days, a signal ends the process at once: what `RunCheckpoint`
    wrote before has everything.

    A signal that came even before `setup`, and that a handler with an attribute `received` noted, ends the run after
    its first step: each attempt wins something, however early SLURM sends it.

    Loader workers ignore the signals as long as they are forked; a worker that is to survive a SIGTERM sent to
    the whole process group has to ignore it by its own `worker_init_fn`, because torch installs its handler there.

    The checkpoint is one of the run's `RunCheckpoint`, which keeps as many as it is told; where the run has none, one
    with its defaults. As a `Checkpoint` this callback runs after all others.

    Args:
        signals: Names of the signals to listen to: Ctrl-C, what SLURM and torchrun send, and the end of the terminal
            or connection. One that is ignored where the process begins (SIGHUP under `nohup`) stays so.
        time_limit_s: Seconds that this process may take from its start. If not given, SLURM is asked when the job ends.
        stop_before_s: Seconds before the limit at which to stop; if not given, those of the batch script that
            `llm-lightning slurm` wrote, else 120, which hold a step and a large checkpoint.

    Attributes:
        stopped: Whether this fit was ended by a signal or the time limit.
        received: The signal, on all ranks once they have agreed; SIGUSR1 for the time limit. None where none came.

    Raises:
        CallbackError: A signal's name is unknown on this platform, or a number of seconds is not positive.
    """

    def __init__(
        self,
        signals: Sequence[str] = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"),
        time_limit_s: float | None = None,
        stop_before_s: float | None = None,
    ) -> None:
        unknown = [name for name in signals if name not in signal.Signals.__members__]
        unknown_everywhere = [name for name in unknown if name not in ("SIGUSR1", "SIGHUP")]  # which Windows has not
        if unknown_everywhere:
            raise CallbackError(
                f"GracefulStop.signals: {unknown_everywhere[0]!r} is no signal; use names such as SIGTERM or SIGUSR1."
            )
        for name, value in (("time_limit_s", time_limit_s), ("stop_before_s", stop_before_s)):
            if value is not None and value <= 0:
                raise CallbackError(f"GracefulStop.{name}={value} must be more than 0 seconds.")
        self.signals = [signal.Signals[name] for name in signals if name not in unknown]
        self.time_limit_s = time_limit_s
        self.stop_before_s = stop_before_s
        self.stopped = False
        self.received: signal.Signals | None = None
        self._training = False
        self._agreement: Agreement | None = None
        self._asks_in_validation = False
        self._stop_at = float("inf")
        self._former_handlers: dict[signal.Signals, Any] = {}
        self._former_limits: Limits | None = None
        self._pid = 0
        self._data: Waits | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # The workers that fit forks before `on_train_start` inherit the handler, which does nothing in them.
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self.stopped, self.received, self._pid = False, None, os.getpid()
            heard = [n for n in self.signals if n != HANG_UP or signal.getsignal(n) is not signal.SIG_IGN]
            self._former_handlers = {number: signal.signal(number, self._on_signal) for number in heard}
            for number, former in self._former_handlers.items():
                if getattr(former, "received", False):
                    self.received = number
        self._data = offered(datamodule_of(trainer), Waits)
        if stage == "fit":
            end = self._end_time() if trainer.is_global_zero else None  # one rank is enough, and spares SLURM the rest
            self._stop_at = float("inf") if end is None else end - self._margin()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning put its own handler in front, which broadcasts inside of it.
        for number in self._former_handlers:
            signal.signal(number, self._on_signal)
        self._agreement = Agreement(trainer)
        self._training = True

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if is_accumulating(trainer) or not self._agree():
            return
        path = _run_checkpoint(trainer).save_behind_batch(trainer)
        self._former_limits = end_fit(trainer)
        self._tell(trainer, pl_module, f"Stopped at step {trainer.global_step}, saved {path}.")

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = num_val_batches(trainer)
        # Where a rank has more batches than another it would ask more often.
        self._asks_in_validation = (
            self._training
            and is_validating_fit(trainer)
            and not is_accumulating(trainer)
            and trainer.strategy.reduce_boolean_decision(batches == trainer.strategy.broadcast(batches))
        )

    @override
    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self._asks_in_validation or not self._agree():
            return
        path = _run_checkpoint(trainer).save_within_validation(trainer)
        self._tell(trainer, pl_module, f"Stopped in the validation of step {trainer.global_step}, saved {path}.")
        raise SystemExit(128 + (self.received or 0))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._agreement is not None:
            self._agreement.settle()
        self._training, self._agreement = False, None

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._training, self._agreement = False, None

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._former_handlers.items():
            signal.signal(number, handler)
        self._former_handlers = {}
        if self._former_limits is not None:
            restore_limits(trainer, self._former_limits)
            self._former_limits = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        if number == HANG_UP:
            _leave_terminal()
        if self._data is not None and self._data.is_waiting:  # no step's end is near, and everything is saved
            os.write(2, b"\nStopped while waiting for data. Run the same command again to continue.\n")
            raise SystemExit(128 + number)
        if not self._training or (self.received is not None and number == signal.SIGINT):
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.received = signal.Signals(number)
        if number == signal.SIGINT and sys.stderr.isatty():
            # Unlike `print`, this cannot meet itself inside a write that the signal interrupted.
            os.write(2, b"\nStopping after this step; press Ctrl-C again to stop at once.\n")

    def _agree(self) -> bool:
        """Whether all ranks stop now."""
        assert self._agreement is not None
        if self.received is None and time.time() >= self._stop_at:
            self.received = TIME_LIMIT
        agreed = self._agreement.ask(self.received or 0)
        if agreed:
            self.received = signal.Signals(agreed)
        return bool(agreed)

    def _tell(self, trainer: Trainer, pl_module: LightningModule, what: str) -> None:
        self.stopped = True
        why = " The time limit is near." if time.time() >= self._stop_at else ""
        pl_module.print(f"{what}{why} Run the same command again to continue.")

    def _margin(self) -> float:
        return self.stop_before_s or float(os.environ.get("LLM_LIGHTNING_STOP_BEFORE", 120))

    def _end_time(self) -> float | None:
        """When this process has to be gone, in seconds since 1970; None where nothing says so."""
        if self.time_limit_s is not None:
            return psutil.Process().create_time() + self.time_limit_s
        if end := os.environ.get("SLURM_JOB_END_TIME"):
            return float(end)
        return _end_by_squeue(os.environ["SLURM_JOB_ID"]) if "SLURM_JOB_ID" in os.environ else None


def _leave_terminal() -> None:
    """Once a terminal is gone each write to it fails, and a line of progress would end the run before it is saved."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _end_by_squeue(job: str) -> float | None:
    """For SLURM before 23.02, which does not put it into the environment; None for a job without a limit."""
    try:
        asked = subprocess.run(["squeue", "-h", "-j", job, "-o", "%e"], capture_output=True, text=True, timeout=20)
        return time.mktime(time.strptime(asked.stdout.split()[0], "%Y-%m-%dT%H:%M:%S"))
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None


def _run_checkpoint(trainer: Trainer) -> RunCheckpoint:
    return next(iter(callbacks_of(trainer, RunCheckpoint)), RunCheckpoint())


def received_signal(trainer: Trainer) -> signal.Signals | None:
    """The signal that ended this run; None where none did."""
    return next((each.received for each in callbacks_of(trainer, GracefulStop)), None)


def was_stopped(trainer: Trainer) -> bool:
    """Whether a signal or the time limit ended this run, which will go on later."""
    return any(each.stopped for each in callbacks_of(trainer, GracefulStop))
