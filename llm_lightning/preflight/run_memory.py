"""What a run takes on each rank, and whether there is room for it."""

from dataclasses import dataclass

import psutil
from lightning.pytorch import LightningDataModule, Trainer

from llm_lightning.modules.base import LanguageModule
from llm_lightning.preflight.capacity import Capacity
from llm_lightning.preflight.known import batch_of, room_of, simplified, unknown_because
from llm_lightning.preflight.memory import StepEstimate, estimate_step
from llm_lightning.preflight.ranks import adds_buckets, pretended_sharding


@dataclass(frozen=True)
class RunMemory:
    """A run's step on one rank, and the room there is.

    Args:
        step: what it takes; None where that is not known.
        capacity: of the rank.
        reason: why it is not known.
        rows: of a micro-batch.
        length: of a row, in tokens.
    """

    step: StepEstimate | None
    capacity: Capacity
    reason: str = ""
    rows: int = 0
    length: int = 0

    @property
    def fits(self) -> bool:
        """Whether there is room, as far as is known."""
        return self.step is None or self.step.total <= self.capacity.total


def memory_of(
    module: LanguageModule, datamodule: LightningDataModule, trainer: Trainer, *, counts_flops: bool = False
) -> RunMemory:
    """Estimate a step of a run; nothing of it has begun, and of its data nothing is read."""
    capacity = room_of(trainer)
    if reason := unknown_because(module, datamodule, trainer):
        return RunMemory(None, capacity, reason)
    batch = batch_of(datamodule)
    assert batch is not None
    rows, length = batch["input_ids"].shape
    plain = simplified(module, datamodule)
    try:
        with pretended_sharding(trainer) as sharding:
            step = estimate_step(plain, batch, trainer, sharding=sharding, counts_flops=counts_flops)
    except Exception as error:  # of any kind, in a user's own module: it is for the fit to say what is wrong with that
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        reason = f"an operator of it cannot be followed ({first})"
        return RunMemory(None, capacity, reason, rows, length)
    if adds_buckets(trainer.strategy):
        step = step.plus("buckets of DDP", step.trained)
    if trainer.strategy.root_device.type == "cpu":
        step = step.plus("Python and libraries", psutil.Process().memory_info().rss)
    return RunMemory(step, capacity, "", rows, length)
