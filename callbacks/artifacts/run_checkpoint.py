"""Resumable checkpoints of a run, at optimizer steps."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from callbacks.errors import CallbackError
from callbacks.phase import is_rehearsal, is_validating_fit


class RunCheckpoint(Checkpoint):
    """Writes `checkpoints/step=N.ckpt` every so many optimizer steps, and at the run's last step.

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
        # Lightning has read by now whether the checkpoint was written within a validation; later ones are not.
        trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset()
        epochs: Any = trainer.fit_loop.epoch_progress.current
        if trainer.fit_loop.restarted_mid_epoch and epochs.processed == epochs.started:
            # The checkpoint ended its epoch. Lightning would not count the next one as started, and a second resumption
            # from within it would train a whole epoch more.
            trainer.fit_loop.reset_restart_stage()

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.fit_loop._should_accumulate() or is_rehearsal(trainer):
            return
        is_last = self._ends_run(trainer)
        self._is_due = is_last or trainer.global_step % self.every_n_steps == 0
        if is_last or (self._is_due and not _validates_now(trainer)):
            self.save_behind_batch(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_validating_fit(trainer) or trainer.fit_loop._should_accumulate():
            return
        if self._is_due or self._ends_run(trainer):
            self._newest, self._is_due = None, False
            with _batch_counted_as_done(trainer, -1):
                self.save(trainer)

    def save(self, trainer: Trainer) -> Path:
        """Write this step's checkpoint on all ranks, once, then remove those that are too many."""
        folder = Path(self.dirpath or Path(trainer.default_root_dir) / "checkpoints")
        path = folder / f"step={trainer.global_step}.ckpt"
        if path == self._newest:
            return path
        if trainer.training:  # behind a validation it is done
            _log_step(trainer)
        trainer.save_checkpoint(path, weights_only=False)
        self._newest = path
        if trainer.is_global_zero:
            for old in sorted(folder.glob("step=*.ckpt"), key=_step)[: -self.keep]:
                trainer.strategy.remove_checkpoint(old)
        return path

    def save_behind_batch(self, trainer: Trainer) -> Path:
        """As `save`, from `on_train_batch_end`; a validation that is due there is begun by the run that goes on."""
        if not _validates_now(trainer):
            return self.save(trainer)
        with _batch_counted_as_done(trainer, 1):
            return self.save_within_validation(trainer)

    def save_within_validation(self, trainer: Trainer) -> Path:
        """Write a checkpoint from which the validation that runs now is begun anew, on all ranks."""
        self._newest = None  # the one of this step that may have been written before it would skip it
        progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        progress.reset_on_run()
        progress.total.reset()
        # What tells Lightning to validate first when it goes on: a batch was started and is not done.
        progress.total.ready = progress.total.started = 1  # type: ignore[attr-defined]
        path = self.save(trainer)
        progress.total.reset()  # the validation may run yet, and is counted from its first batch
        return path

    def _ends_run(self, trainer: Trainer) -> bool:
        loop = trainer.fit_loop
        is_last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        return (
            trainer.global_step == trainer.max_steps
            or (is_last_epoch and loop.epoch_loop._is_training_done)
            or (trainer.should_stop and loop._can_stop_early)
        )


def _validates_now(trainer: Trainer) -> bool:
    """Whether Lightning validates behind this training batch; where it is not known yet, no."""
    loop = trainer.fit_loop
    has_batches = sum(loop.epoch_loop.val_loop._max_batches) > 0
    return has_batches and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]


@contextmanager
def _batch_counted_as_done(trainer: Trainer, count: int) -> Iterator[None]:
    """The loop's counters as they are behind the training batch's hooks (1), or as `on_train_batch_end` sees them (-1).

    Lightning resumes a checkpoint that was written behind a validation in another way, which numbers the logged steps
    one too low where that validation was not on the schedule (the one that it runs when it is told to stop).
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for counts in (progress.total, progress.current):
        counts.completed += count
    try:
        yield
    finally:
        for counts in (progress.total, progress.current):
            counts.completed -= count


def _log_step(trainer: Trainer) -> None:
    """Lightning logs a step after its hooks: a run killed between its checkpoint and that would never log the step."""
    connector = trainer._logger_connector
    if connector.should_update_logs:
        connector.log_metrics(connector.metrics["log"])


def _step(path: Path) -> int:
    return int(re.search(r"step=(\d+)", path.name)[1])  # type: ignore[index]
