"""Answers of a model, kept as they come, so that whoever was killed asks nothing again."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from llm_lightning.errors import UserError
from llm_lightning.measuring.ranks import EvaluationRanks
from llm_lightning_safety.files import make_folder, open_unlinked

PREFIX = "answers-"


def key_of(*parts: Any) -> str:
    """Names a question to a model: of what was asked, of the model and of the settings that decide the answer."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Answers:
    """Answers by the key of their question: a likelihood, or a text with what is known of it.

    Each rank appends to a file of its own, and begins with what all ranks of earlier attempts have written.

    Args:
        folder: where the files lie; None: nothing is kept.
        ranks: that share the work.
    """

    def __init__(self, folder: Path | None = None, ranks: EvaluationRanks | None = None) -> None:
        self._known: dict[str, Any] = {}
        self._file: IO[bytes] | None = None
        if folder is None:
            return
        ranks = ranks or EvaluationRanks()
        make_folder(folder)
        for path in sorted(folder.glob(f"{PREFIX}*.jsonl")):
            self._known |= dict(_read(path))
        # All begin with the same: what one of them adds from now on is in nobody's eyes yet.
        ranks.wait()
        self._file = open_unlinked(folder / f"{PREFIX}{ranks.rank}.jsonl", "ab")
        if self._file.tell():
            self._file.write(b"\n")  # behind a line that a kill may have torn

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def values(self) -> Iterable[Any]:
        """All answers."""
        return self._known.values()

    def add(self, key: str, value: Any) -> None:
        """Keep an answer, on disk before this returns as far as this process's end is concerned."""
        self._known[key] = value
        if self._file is not None:
            self._file.write(json.dumps([key, value]).encode() + b"\n")
            self._file.flush()

    def take(self, others: dict[str, Any]) -> None:
        """Know what other ranks have found, which their files hold."""
        self._known |= others

    def close(self) -> None:
        """Write no more."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def remove_answers(folder: Path) -> None:
    """Forget the answers, once results stand in their place."""
    for path in folder.glob(f"{PREFIX}*.jsonl"):
        path.unlink()


def _read(path: Path) -> Iterator[tuple[str, Any]]:
    with open_unlinked(path, "rb") as file:
        for line in file:
            try:
                key, value = json.loads(line)
            except (ValueError, TypeError):
                continue  # torn by a kill
            if not isinstance(key, str):
                raise UserError(f"{path} holds no answers of a model: take it away, or name another folder.")
            yield key, value
