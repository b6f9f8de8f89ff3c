"""`llm-lightning check`: what a fit will take, and whether it can start; nothing is trained."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from datamodules import DataError, StreamingTextDataModule
from datamodules.base import ResumableDataModule
from datamodules.first_batch import first_batch
from llm_lightning.cli import TrainingCLI
from llm_lightning.cli import run as run_cli
from llm_lightning.errors import UserError
from llm_lightning.preflight.advice import ways_out
from llm_lightning.preflight.disk import disk_of
from llm_lightning.preflight.duration import products_per_second
from llm_lightning.preflight.meeting.looking import can_meet, meet_and_look
from llm_lightning.preflight.memory import StepEstimate
from llm_lightning.preflight.run_memory import memory_of
from llm_lightning.preflight.table import in_table
from llm_lightning.process.rank import is_first_rank

USAGE = """\
usage: llm-lightning check [--config FILE ...] [--KEY VALUE ...]

Says what a fit will take of memory, time and disk, whether its settings go together, its data makes a batch and its
ranks reach each other, before any weight is read. The settings are those of `fit`. Exit code 2: it could not run.
"""


def run(args: list[str], *, debug: bool = False) -> int:
    """Run the command; a user's mistake becomes one message and exit code 2.

    Args:
        args: those of `fit`.
        debug: raise instead.
    """
    if not args or "--help" in args:
        print(USAGE, end="")
        return 0
    return run_cli(["fit", *args], debug=debug, kind=_CheckingCLI)


class _CheckingCLI(TrainingCLI):
    """Builds the parts of a fit, looks at them, and starts nothing."""

    def before_instantiate_classes(self) -> None:
        """As for a fit that does not write its settings."""
        super().before_instantiate_classes()
        self.save_config_callback = None

    def fit(self, **_: Any) -> None:
        """Look at settings, data, memory, time, disk and ranks."""
        self._check()
        if is_first_rank():
            print("Settings and the first records of the data: right.", flush=True)
            print(first_batch_in_words(self.datamodule), flush=True)
        trainer: Trainer = self.trainer
        memory = memory_of(self.model, self.datamodule, trainer, counts_flops=True)
        wrong: list[str] = []
        if memory.step is None:
            print(f"Memory of a step: not known, because {memory.reason}.")
        else:
            wrong += self._look_at_disk(memory.step)
            if is_first_rank():
                print(in_table(memory))
                print(_time_in_words(memory.step, trainer))
        if not memory.fits:
            ways = ways_out(memory, self.model, self.datamodule, trainer)
            wrong.append(f"A step does not fit into {memory.capacity.where}. What takes less:\n{ways}")
        self._look_at_ranks()
        if wrong:
            raise UserError("\n".join(wrong))

    def _look_at_ranks(self) -> None:
        strategy: Any = self.trainer.strategy
        if not self.trainer.checks_ranks or not can_meet(strategy):  # type: ignore[attr-defined]
            return
        if not strategy.cluster_environment.creates_processes_externally:
            print("Ranks: start this command as the run will be, by srun or torchrun, to have them looked at.")
            return
        meet_and_look(strategy, getattr(strategy, "meet", strategy.setup_environment))

    def _look_at_disk(self, step: StepEstimate) -> list[str]:
        disk = disk_of(step, self.trainer)
        line = disk.in_words(Path(self.trainer.default_root_dir))
        if is_first_rank():
            print(line)
        return [] if disk.fits else [f"The disk is too small. {line} Take another by --trainer.default_root_dir."]


def first_batch_in_words(datamodule: Any) -> str:
    """What a DataModule makes of its first records; of one that makes none of so few, why."""
    data = getattr(datamodule, "data", datamodule)
    if not isinstance(data, ResumableDataModule) or isinstance(data, StreamingTextDataModule):
        return "First batch: not made, since this data is read as it is trained on."
    try:
        batch = first_batch(data)
    except DataError as error:
        return f"First batch: none comes of the first records alone ({error})."
    if batch is None:
        return "First batch: not made, since this data is not all in local files."
    shapes = {name: "x".join(map(str, value.shape)) for name, value in batch.items() if isinstance(value, torch.Tensor)}
    return "First batch: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()) + "."


def _time_in_words(step: StepEstimate, trainer: Trainer) -> str:
    dtype = torch.bfloat16 if str(trainer.precision).startswith("bf16") else torch.float32
    speed = products_per_second(trainer.strategy.root_device, dtype)
    counted = min(2, trainer.accumulate_grad_batches)
    seconds = step.flops / counted * trainer.accumulate_grad_batches / speed
    whole = (
        f"; {trainer.max_steps:,} steps: {seconds * trainer.max_steps / 3600:,.2f} h" if trainer.max_steps > 0 else ""
    )
    return (
        f"Time of a step: {seconds:,.3f} s at the least, its {step.flops / counted / 1e9:,.1f} GFLOP a micro-batch of "
        f"matrix products at this device's {speed / 1e9:,.0f} GFLOP/s{whole}."
    )
