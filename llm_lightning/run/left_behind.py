"""What earlier runs, or strangers, left in a run folder, and what a run could not leave."""

import re
import sys
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks import ModelFolder
from llm_lightning.errors import UserError
from llm_lightning.process.rank import is_first_rank
from llm_lightning_safety.files import links_out_of, remove

UNFINISHED = re.compile(r"\..+(\.tmp|\.tmp-\d+|\.unfinished)")
"""Names under which files and folders are written before they get their own."""
WANDB_LOG = re.compile(r"wandb/(offline-)?run-[^/]+/logs/debug-core\.log")
"""W&B's own link into its cache, one in the folder of each of its runs, which no later run reads or writes."""


def refuse_links(root: Path) -> None:
    """Refuse a run folder with links out of it: a stranger's could have this run read, write or send what they name.

    Raises:
        UserError: with the first one.
    """
    if not (is_first_rank() and root.is_dir()):
        return
    for link in links_out_of(root):
        if WANDB_LOG.fullmatch(link.relative_to(root.resolve()).as_posix()):
            continue
        raise UserError(
            f"{link} is a link that leads out of the run folder, which could be a stranger's: remove it, or put what "
            "it points to in its place. (The run folder itself may be a link.)"
        )


@rank_zero_only
def remove_leftovers(root: Path) -> None:
    """Remove what a killed run left half written, which nobody would ever; only under the run's lock."""
    for folder in (root, root / "checkpoints", root / "samples", root / "wandb", root / "slurm"):
        for path in folder.glob(".*"):
            # Not `.predictions`: a `predict` may be at it.
            if UNFINISHED.fullmatch(path.name) and not path.name.startswith(".predictions"):
                remove(path)


def report_unwritten(trainer: Trainer) -> int:
    """The exit code of a run that trained to its end: 1 where a full disk cost a model folder, since a stage that goes
    on from there would find another network or none.
    """
    folders = [each for own in trainer.callbacks if isinstance(own, ModelFolder) for each in own.unwritten]  # type: ignore[attr-defined]
    if not folders:
        return 0
    if trainer.is_global_zero:
        names = " and ".join(map(str, sorted(folders)))
        print(
            f"\nllm-lightning: error: The disk was full: {names} could not be written, and what is there is of an "
            "earlier step. The checkpoints are whole: make room and run the same command again.",
            file=sys.stderr,
        )
    return 1
