"""Whether the checkpoints and model folders of a run will find room."""

import shutil
from dataclasses import dataclass
from pathlib import Path

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
    """

    checkpoint: int
    folder: int
    kept: int
    free: int

    @property
    def needed(self) -> int:
        """Bytes at most: while a checkpoint is written, those that are kept are still there."""
        return (self.kept + 1) * self.checkpoint + FOLDERS * self.folder

    @property
    def fits(self) -> bool:
        """Whether there is room for all of it."""
        return self.needed <= self.free


def disk_of(step: StepEstimate, root: Path, kept: int) -> Disk:
    """What a run will write under `root`, which need not be there yet."""
    place = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    checkpoint = step.kept_weights + step.kept_moments
    return Disk(checkpoint, step.kept_weights, kept, shutil.disk_usage(place).free)
