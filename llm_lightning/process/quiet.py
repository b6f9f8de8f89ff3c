"""Silences what libraries say to developers, so that a run's own messages are read."""

import logging
import os
import re
import sys
import warnings
from typing import TextIO

WARNINGS = (
    r".*LightningCLI's args parameter.*",
    r".*does not have many workers.*",
    r"The `srun` command is available on your system but is not used.*",  # an error of ours where it matters
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*You have overridden `(on_before_batch_transfer|transfer_batch_to_device)`.*",
    r".*is not supported by the model summary.*",
    r".*You defined a `validation_step` but have no `val_dataloader`.*",
    r"It is recommended to use `self\.log\(.*sync_dist=True\)`.*",  # what is logged is over all ranks already
    r".*will save all targets and predictions in the buffer.*",
    r".*was called before the ``update`` method.*",
    r"The variance of predictions or target is close to zero.*",
    r"`loftq_config` specified but will be ignored.*",
    r"Position ids are not supported for parameter efficient tuning.*",
)
MESSAGES = re.compile(
    r"💡|(GPU|TPU|HPU) available: |Seed set to|`Trainer\.\w+` stopped|Using .*Mixed Precision"
    # Kernels for other machines than this one, which torchao and bitsandbytes try as they are imported.
    r"|Failed to load |is an Enum subclass"
)
LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "torchao",
    "torch.utils._pytree",
    "bitsandbytes.backends.cpu.ops",
)


class _Uninteresting(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not MESSAGES.search(record.getMessage())


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as a user reads it: what it says, without the place in somebody's source and a line of code."""
    print(f"Warning: {message}", file=file or sys.stderr, flush=True)


def quiet_libraries() -> None:
    """To be called once, before the libraries are imported."""
    warnings.showwarning = _show  # not `formatwarning`, which Lightning sets as it is imported
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_Uninteresting())
