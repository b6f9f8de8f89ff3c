"""Whether a checkpoint's place in the data means the same in the data of now."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

from datamodules.errors import DataError

WAYS_OUT = "take another folder by --trainer.default_root_dir, or start over with --resume false"


def check_same_rows(saved: Mapping[str, Any], own: Mapping[str, Any], trainer: Trainer | None) -> None:
    """Compare what two `state_dict`s of a DataModule say of the rows and of the batches that are made of them.

    Args:
        saved: the checkpoint's; one that an earlier version wrote says less.
        own: that of the data as they are now.
        trainer: whose run it is; it knows whether epochs are counted.

    Raises:
        DataError: the rows are others, or an epoch of theirs is cut into other batches.
    """
    if saved.get("rows", own["rows"]) != own["rows"]:
        raise DataError(
            "The data, its settings or its seed are not those of the checkpoint, so that its place in them means "
            f"nothing: give those again, {WAYS_OUT}. To train its weights on other data, name its model folder by "
            "--model.backbone.path in a new run."
        )
    counts_epochs = trainer is not None and trainer.max_epochs not in (None, -1)
    before, now = saved.get("per_batch", own["per_batch"]), own["per_batch"]
    if counts_epochs and before != now:
        raise DataError(
            f"batch_size: the checkpoint's epoch is counted in batches of {before} rows over all ranks, and they are "
            f"of {now} now, so that it would end in the wrong place. Give a batch_size that makes {before} of all "
            f"ranks again, count trainer.max_steps with trainer.max_epochs=-1, {WAYS_OUT}."
        )
