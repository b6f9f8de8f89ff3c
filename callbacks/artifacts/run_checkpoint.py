"""Resumable checkpoints of a run, at optimizer steps."""

import re
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from callbacks.contract import Waits, offered
from callbacks.errors import CallbackError
from callbacks.phase import is_rehearsal, is_validating_fit
from callbacks.trainer_parts import datamodule_of
from callbacks.training_loop import (
    batch_counted_as_done,
    ends_run,
    is_accumulating,
    log_step,
    settle_resumed_counters,
    validates_now,
    validation_begun_anew,
)


class RunCheckpoint(Checkpoint):
    """Writes `checkpoints/step=N.ckpt` every so many optimizer steps, at the run's last step, and where the data has no
    more for now and will wait.

    Always inside the loop and where accumulation ends: a checkpoint written after the loop counts the epoch as
    finished, and one written between two micro-batches loses the gradients of the first.

    Where a validation follows a step, its checkpoint is written behind it, since a resumed run does not repeat it and
    what the other callbacks make of it (a patience, a best value) would be lost. Only at the run's last step one is
    written before it too: a validation that fails must not cost a finished training. From that one, as from the one of
    a run that was stopped there, the validation is begun anew.

    Args:
        every_n_steps: Optimizer steps between two checkpoints; what a killed run loses at most. 200 steps of a large
            network take minutes, and those of a small one write little.
        keep: Newest checkpoints to keep. Two, so that a disk error in the newest is no disaster.
        dirpath: Where they go; `checkpoints/` in the run folder if not given.

    Raises:
        CallbackError: A number is below 1.
    """

    def __init__(self, every_n_steps: int = 200, keep: int = 2, dirpath: str | Path | None = None) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("keep", keep)):
            if value < 1:
                raise CallbackError(f"RunCheckpoint.{name}: {value} is below 1.")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.dirpath = dirpath
        self._newest: Path | None = None
        self._is_due = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._newest, self._is_due = None, False
        settle_resumed_counters(trainer)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if is_accumulating(trainer) or is_rehearsal(trainer):
            return
        is_last = ends_run(trainer)
        self._is_due = is_last or trainer.global_step % self.every_n_steps == 0 or _rests(trainer)
        if is_last or (self._is_due and not validates_now(trainer)):
            self.save_behind_batch(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_validating_fit(trainer) or is_accumulating(trainer):
            return
        if self._is_due or ends_run(trainer):
            self._newest, self._is_due = None, False
            with batch_counted_as_done(trainer, -1):
                self.save(trainer)

    def save(self, trainer: Trainer) -> Path:
        """Write this step's checkpoint on all ranks, once, then remove those that are too many."""
        folder = Path(self.dirpath or Path(trainer.default_root_dir) / "checkpoints")
        path = folder / f"step={trainer.global_step}.ckpt"
        if path == self._newest:
            return path
        if trainer.training:  # behind a validation it is done
            log_step(trainer)
        trainer.save_checkpoint(path, weights_only=False)
        self._newest = path
        if trainer.is_global_zero:
            for old in sorted(folder.glob("step=*.ckpt"), key=_step)[: -self.keep]:
                trainer.strategy.remove_checkpoint(old)
        return path

    def save_behind_batch(self, trainer: Trainer) -> Path:
        """As `save`, from `on_train_batch_end`; a validation that is due there is begun by the run that goes on."""
        if not validates_now(trainer):
            return self.save(trainer)
        with batch_counted_as_done(trainer, 1):
            return self.save_within_validation(trainer)

    def save_within_validation(self, trainer: Trainer) -> Path:
        """Write a checkpoint from which the validation that runs now is begun anew, on all ranks."""
        self._newest = None  # the one of this step that may have been written before it would skip it
        with validation_begun_anew(trainer):
            return self.save(trainer)


def _rests(trainer: Trainer) -> bool:
    data = offered(datamodule_of(trainer), Waits)
    return data is not None and data.rests()


def _step(path: Path) -> int:
    return int(re.search(r"step=(\d+)", path.name)[1])  # type: ignore[index]
