"""Which network a run began from, whatever its folder is called."""

import hashlib
from functools import cached_property
from pathlib import Path

from llm_lightning.errors import UserError

ENDS = 2**16
"""Bytes of a weights file's beginning, which names its tensors, and of its end: all of it would take minutes."""


def identity_of(path: str | None) -> str | None:
    """A short name for the network at `path`: of a folder's or a file's content, else of the hub id itself; None for a
    network from scratch.
    """
    if path is None:
        return None
    place = Path(path)
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place] if place.is_file() else []
    if not files:
        return f"hub:{path}"
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if place.is_dir() else ''} {size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(ENDS))
            content.seek(max(0, size - ENDS))
            digest.update(content.read(ENDS))
    return digest.hexdigest()


class Beginning:
    """The network that a run began from, at `path`; it is looked at once."""

    def __init__(self, path: str | None) -> None:
        self.path = path

    @cached_property
    def identity(self) -> str | None:
        """See `identity_of`."""
        return identity_of(self.path)

    def check(self, *saved: str | None) -> None:
        """Compare it with that of a checkpoint's run; nothing, where an earlier version wrote the checkpoint.

        Raises:
            UserError: it is another one, and going on would not train it.
        """
        if saved and saved[0] != self.identity:
            raise UserError(
                f"model.backbone.path={self.path!r} holds another network than the checkpoint's run began from, and "
                "going on would not train it. Name that one, another trainer.default_root_dir, or start over with "
                "--resume false."
            )
