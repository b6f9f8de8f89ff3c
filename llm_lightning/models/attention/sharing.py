"""A row of token sequences that take over from each other what they begin with, so that it is computed once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from llm_lightning.models.attention.branches import Branch, Branches
from llm_lightning.models.attention.documents import Documents

LEAST_SHARED = 16
"""Tokens: to take over fewer costs more than to compute them again."""


def shared_tokens(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens a sequence takes over from the one before it: what both begin with, if it is all or enough."""
    n = min(len(one), len(other))
    differ = (one[:n] != other[:n]).nonzero()[0]
    shared = int(differ[0]) if len(differ) else n
    return shared if shared >= LEAST_SHARED or shared == len(other) else 0


class SharedRow:
    """A row that is being filled. Sequences that share much should come one after the other: each looks at the newest.

    Args:
        shares: whether sequences may take over a beginning; else all stand for themselves.

    Attributes:
        length: tokens of the row so far.
    """

    def __init__(self, shares: bool = True) -> None:
        self.length = 0
        self._shares = shares
        self._ids: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []
        self._branches: list[tuple[slice, np.ndarray]] = []
        # The newest sequence, and where its tokens stand.
        self._newest = self._newest_places = np.zeros(0, np.int64)

    def surplus(self, ids: np.ndarray) -> int:
        """By how many tokens the row grows with a sequence."""
        return len(ids) - self._shared(ids)

    def add(self, ids: np.ndarray) -> np.ndarray:
        """Put a sequence (n,) behind the others; returns where in the row its tokens stand (n,) int64."""
        shared = self._shared(ids)
        own, before = ids[shared:], self._newest_places[:shared]
        places = np.concatenate([before, np.arange(self.length, self.length + len(own))])
        if len(own):
            self._append(own, np.arange(shared, len(ids)), before)
        self._newest, self._newest_places = ids, places
        return places

    def pad(self, multiple: int) -> None:
        """Make the row's length a multiple, by a sequence that nothing is read from."""
        padding = -self.length % multiple
        if padding:
            self._append(np.zeros(padding, np.int64), np.arange(padding), np.zeros(0, np.int64))

    def batch(self, device: torch.device) -> dict[str, Any]:
        """`input_ids` and `position_ids` (1, T), and the `documents` that say who sees whom."""
        position_ids = torch.from_numpy(np.concatenate(self._positions))[None]
        documents: Documents | Branches
        if any(len(before) for _, before in self._branches):
            documents = Branches([Branch.of(own, before, device) for own, before in self._branches])
        else:
            documents = Documents.of(position_ids).to(device)
        return {
            "input_ids": torch.from_numpy(np.concatenate(self._ids))[None].to(device),
            "position_ids": position_ids.to(device),
            "documents": documents,
        }

    def _shared(self, ids: np.ndarray) -> int:
        return shared_tokens(self._newest, ids) if self._shares else 0

    def _append(self, own: np.ndarray, positions: np.ndarray, before: np.ndarray) -> None:
        self._branches.append((slice(self.length, self.length + len(own)), before))
        self._ids.append(own)
        self._positions.append(positions)
        self.length += len(own)


def in_sharing_order(sequences: Sequence[np.ndarray]) -> list[int]:
    """Numbers of sequences, each behind the one that it shares most with."""
    return sorted(range(len(sequences)), key=lambda number: sequences[number].tolist())
