"""Resumable checkpoints of a run, at optimizer steps."""

import re
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from callbacks.errors import CallbackError
from callbacks.phase import is_rehearsal


class RunCheckpoint(Checkpoint):
    """Writes `checkpoints/step=N.ckpt` every so many optimizer steps, and at the run's last step.

    Always inside the loop and where accumulation ends: a checkpoint written after the loop counts the epoch as
    finished, and one written between two micro-batches loses the gradients of the first.

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

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._newest = None

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.fit_loop._should_accumulate() or is_rehearsal(trainer):
            return
        step = trainer.global_step
        if step % self.every_n_steps == 0 or step == trainer.max_steps or self._ends_run(trainer):
            self.save(trainer)

    def save(self, trainer: Trainer) -> Path:
        """Write this step's checkpoint on all ranks, once, then remove those that are too many."""
        folder = Path(self.dirpath or Path(trainer.default_root_dir) / "checkpoints")
        path = folder / f"step={trainer.global_step}.ckpt"
        if path == self._newest:
            return path
        _log_step(trainer)
        trainer.save_checkpoint(path, weights_only=False)
        self._newest = path
        if trainer.is_global_zero:
            for old in sorted(folder.glob("step=*.ckpt"), key=_step)[: -self.keep]:
                trainer.strategy.remove_checkpoint(old)
        return path

    def _ends_run(self, trainer: Trainer) -> bool:
        is_last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        return is_last_epoch and trainer.fit_loop.epoch_loop._is_training_done


def _log_step(trainer: Trainer) -> None:
    """Lightning logs a step after its hooks: a run killed between its checkpoint and that would never log the step."""
    connector = trainer._logger_connector
    if connector.should_update_logs:
        connector.log_metrics(connector.metrics["log"])


def _step(path: Path) -> int:
    return int(re.search(r"step=(\d+)", path.name)[1])  # type: ignore[index]
