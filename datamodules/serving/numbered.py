"""Rows that bring their numbers along, for what is kept of each of them elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from datamodules.serving.collate import Row
from datamodules.serving.dataset import PackedRows


class NumberedRows(Dataset[tuple[int, Row]]):
    """Each row behind its number, -1 for a blank one."""

    def __init__(self, rows: PackedRows) -> None:
        self.rows = rows
        self.num_rows = rows.num_rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[int, Row]:
        return row, self.rows[row]


class NumberedCollator:
    """A batch of rows with their numbers, as `row_numbers` (B,) int64."""

    def __init__(self, collate: Callable[[Sequence[Row]], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[tuple[int, Row]]) -> Any:
        """See `collate`."""
        numbers, plain = zip(*rows, strict=True)
        return self.collate(plain) | {"row_numbers": torch.tensor(numbers)}
