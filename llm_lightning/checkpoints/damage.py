"""A checkpoint that a disk cut or changed is found before anything is taken from it, and the one before is used."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from llm_lightning.checkpoints.checkpoint_io import METADATA_FILE, checkpoints, training_state
from llm_lightning.checkpoints.checksums import check_file
from llm_lightning.checkpoints.sharded_reader import METADATA_CHECKSUM, PartsReader
from llm_lightning.errors import UserError


@runtime_checkable
class Ranks(Protocol):
    """A strategy whose ranks can look at a share of a sharded checkpoint each, as those of `FSDP2Strategy`."""

    global_rank: int
    world_size: int

    def meet(self) -> None:
        """Start the processes' group, where that was not done yet."""
        ...

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """What the first rank has, on all."""
        ...

    def first_said(self, text: str | None) -> str | None:
        """What the first of the ranks that say something says, on all; None where none does."""
        ...


def last_good_checkpoint(
    folder: Path, name: str = "step", set_aside: bool = False, strategy: Any = None
) -> Path | None:
    """The checkpoint with the most steps that is whole, None where there is none at all; says which ones are not.

    Where checkpoints are sharded, the ranks of an `FSDP2Strategy` meet here, each looks at a share of the files,
    and all get the same answer. Else each rank looks for itself, and all see the same files.

    Args:
        folder: where to look.
        name: as of `checkpoints`.
        set_aside: rename those that are not whole to `NAME.damaged` (on the first rank), so that they are not counted
            among those to be kept.
        strategy: of the trainer; without one this process looks at all parts.

    Raises:
        UserError: none is whole.
    """
    found = checkpoints(folder, name)
    ranks = strategy if isinstance(strategy, Ranks) and any(path.is_dir() for path in found) else None
    if ranks is not None:
        ranks.meet()
        found = ranks.broadcast(found)
    damaged: dict[Path, str] = {}
    for path in found:
        if ranks is None and not path.exists():  # set aside by the first rank
            continue
        why = _damage(path, *((0, 1) if ranks is None else (ranks.global_rank, ranks.world_size)))
        if ranks is not None:
            why = ranks.first_said(why)
        if why is not None:
            damaged[path] = why
            continue
        for each in damaged if set_aside and getattr(rank_zero_only, "rank", 0) == 0 else ():
            each.rename(each.with_name(f"{each.name}.damaged"))
        if damaged:
            rank_zero_warn(f"{'; '.join(damaged.values())}. Taken instead is the last one that is whole, {path}.")
        return path
    if damaged:
        raise UserError(f"{'; '.join(damaged.values())}. There is no other: start over with --resume false.")
    return None


def _damage(path: Path, rank: int, num_ranks: int) -> str | None:
    try:
        check_checkpoint(path, rank, num_ranks)
    except (UserError, OSError) as error:
        return str(error)
    return None


def check_checkpoint(path: Path, rank: int = 0, num_ranks: int = 1) -> None:
    """Compare a checkpoint's lengths and checksums.

    Args:
        path: in one file, or sharded. Of DeepSpeed's nothing is known before they are read.
        rank: this one's number among those that share the work; of a sharded one it looks at its share.
        num_ranks: of those.

    Raises:
        UserError: it is damaged.
        OSError: it cannot be read.
    """
    if path.is_file():
        check_file(path)
    elif (path / ".metadata").exists():
        try:
            _check_parts(path, rank, num_ranks)
        except UserError as error:
            raise UserError(f"{path} is damaged: {error}") from error


def _check_parts(path: Path, rank: int, num_ranks: int) -> None:
    if not (path / METADATA_FILE).exists():
        raise UserError(f"its {METADATA_FILE} is missing")
    check_file(path / METADATA_FILE)
    PartsReader(path, training_state(path).get(METADATA_CHECKSUM)).check(rank, num_ranks)
