"""The stopwatch as Lightning callbacks, for `--trainer.callbacks+=benchmarks.step_timer.StepTimer`."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.step_clock import StepClock
from benchmarks.tally import PairTally, Tally


class StepTimer(Callback):
    """Times the steps of a fit with one micro-batch a step, and adds up the seconds that they log of their phases; see
    `StepClock` for the arguments."""

    def __init__(self, result: str, warmup: int, steps: int) -> None:
        self.clock = StepClock(result, warmup, steps)
        self.phases: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.device = trainer.strategy.root_device.type

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.clock.is_timing:
            for name, value in trainer.callback_metrics.items():
                if name.startswith("throughput/") and name.endswith("_s") and not name.endswith("_per_s"):
                    name = name.removeprefix("throughput/")
                    self.phases[name] = self.phases.get(name, 0.0) + float(value)
        self.clock.tick()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.report(float(trainer.callback_metrics["train/loss"]), **self.phases)


class PassTimer(Callback):
    """Times one pass over the data, and counts what its steps trained on; see `StepClock` for the arguments."""

    tally: Any

    def __init__(self, result: str, warmup: int) -> None:
        self.clock = StepClock(result, warmup, steps=None)
        self.tally = self.make_tally()

    def make_tally(self) -> Any:
        return Tally()

    def add(self, batch: Any, loss: Any) -> None:
        self.tally.add(batch, loss, self.clock.is_timing)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.device = trainer.strategy.root_device.type
        self.clock.expect(int(trainer.estimated_stepping_batches))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.add(batch, trainer.callback_metrics["train/loss"])
        self.clock.tick()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.report(**self.tally.as_dict())


class PairTimer(PassTimer):
    """The same over preference pairs."""

    def make_tally(self) -> PairTally:
        return PairTally()

    def add(self, batch: Any, loss: Any) -> None:
        self.tally.add(len(batch["ties"]), loss, self.clock.is_timing)
