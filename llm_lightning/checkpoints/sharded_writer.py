"""Sharded checkpoints: each rank writes its parts, and the folder gets its name once it is whole."""

import copy
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from llm_lightning.checkpoints.checkpoint_io import METADATA_FILE, AtomicCheckpointIO
from llm_lightning.checkpoints.sharded_reader import METADATA_CHECKSUM
from llm_lightning.errors import UserError
from llm_lightning_safety.files import remove
from llm_lightning_safety.seals import checksum


def unfinished_folder(path: Path) -> Path:
    """Where a checkpoint is written until it is whole."""
    return path.with_name(f".{path.name}.unfinished")


def write_sharded(
    parts: Mapping[str, Any], rest: dict[str, Any], path: Path, process_group: dist.ProcessGroup | None = None
) -> None:
    """Write a checkpoint; every rank calls it.

    Args:
        parts: what is sharded, by name.
        rest: what is not; of the first rank.
        path: what stood there stays until the new one is whole.
        process_group: by which the ranks agree; by default the one of all.

    Raises:
        UserError: a rank could not write.
    """
    unfinished = unfinished_folder(path)
    is_first = dist.get_rank(process_group) == 0
    try:
        dcp.save(dict(parts), checkpoint_id=unfinished, process_group=process_group)
    except dcp.CheckpointException as error:
        if is_first:
            remove(unfinished)
        raise UserError(
            f"{path} could not be written: {next(iter(error.failures.values()))[0]}. The checkpoint before it is "
            "whole; make room and run the same command again to go on from there."
        ) from error
    if is_first:
        rest[METADATA_CHECKSUM] = checksum((unfinished / ".metadata").read_bytes())
        AtomicCheckpointIO().save_checkpoint(rest, unfinished / METADATA_FILE)
        remove(path)
        unfinished.replace(path)


class BackgroundWriter:
    """Writes checkpoints in a thread of its own, one after the other, while training goes on.

    A rank copies its parts to the host's memory first, which is all that training waits for. The ranks agree in a
    process group of their own, since the calls of two threads in one would mix.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._group: dist.ProcessGroup | None = None
        self._future: Future[None] | None = None

    def begin(self, parts: Mapping[str, Any], rest: dict[str, Any], path: Path) -> None:
        """As `write_sharded`, but for what goes wrong, which `wait` raises."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
            self._group = dist.new_group(backend="gloo")
        on_host = StagingOptions(
            use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
        )
        staged = DefaultStager(on_host).stage(dict(parts))
        assert isinstance(staged, dict)  # staged at once
        self._future = self._executor.submit(write_sharded, staged, copy.deepcopy(rest), path, self._group)

    def wait(self) -> None:
        """Until the last checkpoint is whole.

        Raises:
            UserError: it could not be written.
        """
        future, self._future = self._future, None
        if future is not None:
            future.result()
