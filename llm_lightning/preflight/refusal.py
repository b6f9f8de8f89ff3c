"""Refuses a run that cannot fit into memory, before its weights are read, and warns of a disk that is too small."""

from pathlib import Path

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from llm_lightning.launch.checks import LaunchError
from llm_lightning.modules.base import LanguageModule
from llm_lightning.preflight.disk import Disk, disk_of
from llm_lightning.preflight.known import is_far_below
from llm_lightning.process.rank import is_first_rank


def refuse_oversized(module: LanguageModule, datamodule: LightningDataModule, trainer: Trainer) -> None:
    """Look closely only at runs that could come near what there is: that takes some seconds, and others none.

    Raises:
        LaunchError: a step takes more than there is; with the numbers and the ways out. Every rank finds the same.
    """
    if is_far_below(module, datamodule, trainer):
        return
    from llm_lightning.preflight.advice import ways_out
    from llm_lightning.preflight.capacity import gib
    from llm_lightning.preflight.run_memory import memory_of
    from llm_lightning.preflight.table import in_table

    memory = memory_of(module, datamodule, trainer)
    if memory.step is None:
        rank_zero_info(f"How much memory a step takes is not known: {memory.reason}.")
    elif not memory.fits:
        raise LaunchError(
            f"This run cannot fit: a step takes {gib(memory.step.total)} on each rank, and {memory.capacity.where} has "
            f"{gib(memory.capacity.total)}.\n{in_table(memory)}\nWhat takes less:\n"
            f"{ways_out(memory, module, datamodule, trainer)}\n"
            "docs/running/check.md says how near such estimates came; --check_memory false starts the run all the same."
        )
    elif memory.step.total > memory.capacity.free:
        rank_zero_warn(
            f"A step takes about {gib(memory.step.total)} on each rank, and of {memory.capacity.where} only "
            f"{gib(memory.capacity.free)} are free now."
        )
    if memory.step is not None and is_first_rank():
        warn_of_disk(disk_of(memory.step, trainer), Path(trainer.default_root_dir))


def warn_of_disk(disk: Disk, root: Path) -> None:
    """Say where a run will find no room for what it writes; it may be made while the run goes on."""
    if not disk.fits:
        rank_zero_warn(
            f"The disk is too small for what this run will write. {disk.in_words(root)} Take another by "
            "--trainer.default_root_dir, or keep fewer by RunCheckpoint.keep."
        )
