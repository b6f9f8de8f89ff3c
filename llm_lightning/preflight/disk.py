"""Whether the checkpoints and model folders of a run will find room."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import Callback, Trainer

from callbacks.artifacts.run_checkpoint import RunCheckpoint
from llm_lightning.preflight.capacity import gib
from llm_lightning.preflight.memory import StepEstimate

FOLDERS = 3
"""`model/best`, `model/last`, and the one that is written beside its place."""


@dataclass(frozen=True)
class Disk:
    """What a run writes.

    Args:
        checkpoint: bytes of one checkpoint.
        folder: bytes of a model folder.
        kept: checkpoints that are kept.
        free: bytes that the run folder's disk has left.
        there: bytes of the run folder's checkpoints and model folders, which make room for new ones.
    """

    checkpoint: int
    folder: int
    kept: int
    free: int
    there: int = 0

    @property
    def needed(self) -> int:
        """Bytes at most: while a checkpoint is written, those that are kept are still there."""
        return (self.kept + 1) * self.checkpoint + FOLDERS * self.folder

    @property
    def fits(self) -> bool:
        """Whether there is room for all of it."""
        return self.needed <= self.free + self.there

    def in_words(self, root: Path) -> str:
        """What is written, and what room there is."""
        held = f" and {gib(self.there)} held by those that are there" if self.there else ""
        return (
            f"Disk: {gib(self.needed)} for {self.kept + 1} checkpoints of {gib(self.checkpoint)} and model folders of "
            f"{gib(self.folder)}; {gib(self.free)} are free{held} at {root}."
        )


def disk_of(step: StepEstimate, trainer: Trainer) -> Disk:
    """What a run will write into its folder, which need not be there yet; the disk is that of this process's host."""
    return _disk(step.kept_weights + step.kept_moments, step.kept_weights, trainer)


def most_disk(weights: int, trainer: Trainer) -> Disk:
    """The most it will write: all weights and two moments of each.

    Args:
        weights: bytes in float32.
    """
    return _disk(3 * weights, weights, trainer)


def _disk(checkpoint: int, folder: int, trainer: Trainer) -> Disk:
    root = Path(trainer.default_root_dir)
    every: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    kept = sum(each.keep for each in every if isinstance(each, RunCheckpoint))
    place = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    found = Disk(checkpoint, folder, kept, free)
    return found if found.fits else Disk(checkpoint, folder, kept, free, _held(root))


def _held(root: Path) -> int:
    files = (path for name in ("checkpoints", "model") for path in (root / name).rglob("*"))
    return sum(path.lstat().st_size for path in files if path.is_file())
