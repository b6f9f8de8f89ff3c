"""The stopwatch as a Lightning callback, for `--trainer.callbacks+=benchmarks.step_timer.StepTimer`."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.step_clock import StepClock


class StepTimer(Callback):
    """Times the steps of a fit with one micro-batch a step; see `StepClock` for the arguments."""

    def __init__(self, result: str, warmup: int, steps: int) -> None:
        self.clock = StepClock(result, warmup, steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.device = trainer.strategy.root_device.type

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.clock.tick()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.report(float(trainer.callback_metrics["train/loss"]))
