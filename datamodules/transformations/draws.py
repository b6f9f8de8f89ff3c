"""Rows of which another version is served each time, decided by names: the seed, the row, and how often it came."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from datamodules.errors import DataError
from datamodules.serving.collate import Piece, Row
from datamodules.serving.dataset import Documents, NumberedRows, PackedRows


class Draw(Protocol):
    """Makes a version of a row."""

    def __call__(self, row: Row, *, time: int, number: int) -> list[Any]:
        """What is served of a row, the same for the same arguments; pieces, or what the collator takes for them.

        Args:
            row: its pieces.
            time: how often it was served before.
            number: of the row among all.
        """
        ...

    def key(self) -> list[Any]:
        """All that decides what is made of a row, but for its seed; JSON."""
        ...


class DrawnRows(Dataset[Row]):
    """Versions of rows; id -1 is blank, and row r at time t has the id t * len(rows) + r."""

    def __init__(self, rows: PackedRows, draw: Draw) -> None:
        self.rows = rows
        self.draw = draw

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        if number < 0:
            return []
        time, row = divmod(number, len(self.rows))
        return self.draw(self.rows[row], time=time, number=row)


class DrawnDocuments:
    """Whole documents, each as a row of its own that is served for the first time; see `Documents`."""

    def __init__(self, documents: Documents, draw: Draw) -> None:
        self.documents = documents
        self.draw = draw

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, number: int) -> Piece:
        return self.draw([self.documents[number]], time=0, number=number)[0]


def drawn(rows: PackedRows | NumberedRows, draw: Draw | None) -> Dataset:
    """The rows as they are served.

    Raises:
        DataError: something is kept of each row elsewhere, by its number, and there are many versions of it.
    """
    if draw is None:
        return rows
    if isinstance(rows, NumberedRows):
        raise DataError(
            f"{draw.key()[0]}: rows are others each time, so that nothing can be kept of them, as a teacher's cache"
            " does: leave one of them out"
        )
    return DrawnRows(rows, draw)


def generator(*name: int) -> np.random.Generator:
    """Random numbers that the name alone decides, on any machine, in any process."""
    digest = hashlib.blake2b(repr(name).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
