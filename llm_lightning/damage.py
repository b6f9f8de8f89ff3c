"""A checkpoint that a disk cut or changed is found before anything is taken from it, and the one before is used."""

from collections import defaultdict
from pathlib import Path

from lightning.fabric.utilities.load import _METADATA_FILENAME
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from llm_lightning.checkpointing import checkpoints
from llm_lightning.checksums import check_file
from llm_lightning.errors import UserError
from llm_lightning.launch.checks import is_first_rank
from llm_lightning.strategies.parts import PartsReader


def last_good_checkpoint(folder: Path, name: str = "step", set_aside: bool = False) -> Path | None:
    """The checkpoint with the most steps that is whole, None where there is none at all; says which ones are not.

    Each rank looks for itself, and all see the same files.

    Args:
        folder: where to look.
        name: as of `checkpoints`.
        set_aside: rename those that are not whole to `NAME.damaged` (on the first rank), so that they are not counted
            among those to be kept.

    Raises:
        UserError: none is whole.
    """
    damaged: dict[Path, str] = {}
    for path in checkpoints(folder, name):
        try:
            check_checkpoint(path)
        except FileNotFoundError:  # set aside by the first rank
            continue
        except (UserError, OSError) as error:
            damaged[path] = str(error)
            continue
        for each in damaged if set_aside and is_first_rank() else ():
            each.rename(each.with_name(f"{each.name}.damaged"))
        if damaged:
            rank_zero_warn(f"{'; '.join(damaged.values())}. Taken instead is the last one that is whole, {path}.")
        return path
    if damaged:
        raise UserError(f"{'; '.join(damaged.values())}. There is no other: start over with --resume false.")
    return None


def check_checkpoint(path: Path) -> None:
    """Of one in a file the checksums, of one in parts the lengths: their checksums are compared as they are read.

    Raises:
        UserError: it is damaged.
    """
    if path.is_file():
        check_file(path)
    elif (path / ".metadata").exists():
        if not (path / _METADATA_FILENAME).exists():
            raise UserError(f"{path} is damaged: its {_METADATA_FILENAME} is missing")
        check_file(path / _METADATA_FILENAME)
        _check_lengths(path)


def _check_lengths(path: Path) -> None:
    ends: dict[str, int] = defaultdict(int)
    for place in PartsReader(path).read_metadata().storage_data.values():
        ends[place.relative_path] = max(ends[place.relative_path], place.offset + place.length)
    for name, end in ends.items():
        there = (path / name).stat().st_size if (path / name).exists() else 0
        if there < end:
            raise UserError(f"{path} is damaged: {name} has {there:,} bytes of {end:,}")
