"""Short documents first: rows whose documents are cut, at lengths that grow while a run trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from datamodules.errors import DataError
from datamodules.serving.collate import IGNORE


@dataclass(frozen=True)
class LengthCurriculum:
    """How far a token sees at the beginning of a run, and when it sees all of its row.

    Rows stay full, so that each step has the same tokens: what grows is the length at which their documents are cut, in
    a straight line from `start` to the length of a row, as in SkyLadder (arXiv:2503.15450). A part sees nothing of what
    stands before it, so that its first token has no loss.

    Args:
        start: tokens of a part in the first row.
        tokens: of all rows up to the first one whose documents are whole.
    """

    start: int
    tokens: float

    def check(self, seq_len: int) -> None:
        """Raise `DataError` for what is out of range."""
        if not 2 <= self.start < seq_len:
            raise DataError(
                f"length_curriculum: start must be at least 2 and below seq_len={seq_len}, not {self.start}; a part of"
                " one token has nothing to predict"
            )
        if not 0 < self.tokens < math.inf:
            raise DataError(f"length_curriculum: tokens must be above 0, not {self.tokens}")

    def lengths(self, samples: np.ndarray, seq_len: int) -> np.ndarray:
        """(N,) int64 the tokens of a part, for (N,) int64 global sample indices, which count rows of all ranks."""
        done = np.minimum(samples * float(seq_len), self.tokens) / self.tokens
        return self.start + ((seq_len - self.start) * done).astype(np.int64)


@dataclass(frozen=True)
class Cutter:
    """Cuts the documents of a batch.

    Args:
        curriculum: says where.
        seq_len: T.
    """

    curriculum: LengthCurriculum
    seq_len: int

    def __call__(self, batch: Mapping[str, Any], samples: np.ndarray) -> dict[str, Any]:
        """A batch whose positions begin anew within documents.

        Args:
            batch: `position_ids` and `labels`, (B, T).
            samples: (B,) the global sample index of each row.
        """
        lengths = torch.from_numpy(self.curriculum.lengths(samples, self.seq_len))[:, None]
        positions = batch["position_ids"] % lengths
        labels = batch["labels"].masked_fill(positions == 0, IGNORE)
        return {**batch, "position_ids": positions, "labels": labels}
