"""Resumable checkpoints: written so that a kill or a full disk leaves the last good one, read without running code."""

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.load import _METADATA_FILENAME

from llm_lightning.checkpoints.checksums import check_file
from llm_lightning.errors import UserError

METADATA_FILE = _METADATA_FILENAME
"""Holds what is not sharded, in the folder that a sharded checkpoint is."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames; Lightning's own holds the whole checkpoint in memory twice to do that."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint`; what was at `path` stays until the new file is whole and on the disk.

        Raises:
            UserError: the disk is full.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        try:
            unfinished.unlink(missing_ok=True)  # of a process of this number on another node, or planted
            with unfinished.open("xb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except (OSError, RuntimeError) as error:
            free = shutil.disk_usage(path.parent).free
            unfinished.unlink(missing_ok=True)
            if _is_disk_full(error, free):
                raise UserError(
                    f"The disk is full: {path} could not be written ({free / 1e6:.0f} MB are free). The checkpoint "
                    "before it is whole; make room and run the same command again to go on from there."
                ) from error
            raise

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Read a checkpoint with `weights_only=True`, whatever was asked for: a checkpoint must not run code.

        Raises:
            UserError: the file is missing, damaged, or no checkpoint.
        """
        if Path(path).is_dir():
            raise UserError(
                f"ckpt_path={str(path)!r} is a sharded checkpoint: add --config configs/trainer/fsdp.yaml, with any "
                "trainer.devices, or start over with --resume false."
            )
        try:
            check_file(Path(path))  # `mmap` skips the checksums
            return torch.load(path, map_location=map_location or "cpu", weights_only=True, mmap=True)
        except FileNotFoundError as error:
            raise UserError(f"ckpt_path={str(path)!r}: there is no such checkpoint.") from error
        except UserError as error:
            raise UserError(
                f"ckpt_path={str(path)!r} cannot be read as a checkpoint: {error}. Name another one by --ckpt_path."
            ) from error
        except Exception as error:
            raise UserError(f"ckpt_path={str(path)!r} cannot be read as a checkpoint: {error}") from error


def _is_disk_full(error: Exception, free: int) -> bool:
    """torch's zip writer reports a failed write as a RuntimeError without an errno."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return free < 2**20 or "unexpected pos" in str(error) or "file write failed" in str(error)


def training_state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds beside the weights, which are not read: `callbacks` by their state keys, `loops`, ...

    Nothing for one of DeepSpeed, which has all in one pickle with the weights.
    """
    file = path if path.is_file() else path / METADATA_FILE
    return AtomicCheckpointIO().load_checkpoint(file) if file.exists() else {}


def is_before_validation(state: dict[str, Any]) -> bool:
    """Whether the checkpoint of this `training_state` was written where a validation was still to do."""
    if "loops" not in state:
        return False
    batches = state["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
    return batches["started"] > batches["processed"]


def newest_checkpoint(folder: Path, name: str = "step") -> Path | None:
    """The first one of `checkpoints`, None where there is none."""
    return next(iter(checkpoints(folder, name)), None)


def checkpoints(folder: Path, name: str = "step") -> list[Path]:
    """The checkpoints of a run's `checkpoints/`, those with the most steps first.

    Files are complete by construction; a sharded checkpoint is a folder that is complete once `.metadata` is there, or
    what DeepSpeed writes last.

    Args:
        folder: where to look.
        name: what stands before the steps: `step`, or `best` for the weights of a validation.
    """
    found = [
        path
        for path in folder.glob(f"*{name}=*.ckpt")
        if not path.name.startswith(".")
        and (path.is_file() or any((path / last).is_file() for last in (".metadata", "latest")))
    ]
    return sorted(found, key=lambda path: step_of(path) or 0, reverse=True)


def step_of(path: Path) -> int | None:
    """The optimizer steps that a checkpoint's name tells, None where it tells none."""
    match = re.search(r"(?:step|best)=(\d+)", path.name)
    return int(match[1]) if match else None


def trained_steps(checkpoint: Path | str | None) -> int:
    """The optimizer steps behind which a run goes on: 0 without a checkpoint, or where nothing tells them."""
    if checkpoint is None:
        return 0
    steps = step_of(Path(checkpoint))
    return training_state(Path(checkpoint)).get("global_step", 0) if steps is None else steps
