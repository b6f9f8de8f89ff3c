"""Preference pairs from the token shards, and packed rows of them as a batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from datamodules.contract import PairBatch
from datamodules.encoding.pairs import PAIR
from datamodules.serving.dataset import Documents, PackedRows, TokenSpans
from datamodules.serving.layout import SpanLayout


class Pair(NamedTuple):
    """Two responses to one prompt.

    Args:
        prompt: (p,) token ids that both begin with.
        chosen, rejected: (c,) and (r,) token ids behind them.
        details: the rest that is known, as `PAIR`.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    details: np.ndarray


def read_pair(tokens: TokenSpans, start: int, length: int) -> Pair:
    """The pair that begins with a token."""
    shard, begin = tokens.locate(start)
    number = shard.document_at(begin)
    details = shard.details(PAIR)[number : number + 1][0]
    ids = shard.tokens[begin : begin + length]
    chosen = int(details["shared"])
    rejected = chosen + int(details["chosen"])
    return Pair(ids[:chosen], ids[chosen:rejected], ids[rejected:], details)


class PairRows(PackedRows):
    """The packed rows of several sources as lists of pairs; row -1 is blank."""

    def __getitem__(self, row: int) -> list[Pair]:  # type: ignore[override]
        return [read_pair(*piece) for piece in self.pieces(row)]


class Pairs(Documents):
    """Whole pairs of several sources, one after the other."""

    def __getitem__(self, number: int) -> Pair:  # type: ignore[override]
        return read_pair(*self.place(number))


@dataclass(frozen=True)
class PairCollator:
    """Makes a batch of rows of pairs; see `SpanLayout` for the arguments."""

    seq_len: int
    pad_token_id: int

    def __call__(self, rows: Sequence[list[Pair]]) -> PairBatch:
        """A batch of N pairs in B rows."""
        layout = SpanLayout(len(rows), self.seq_len, self.pad_token_id)
        ends = np.array([self._add(layout, row, pair) for row, pairs in enumerate(rows) for pair in pairs], np.int64)
        pairs = [pair for row in rows for pair in row]
        lengths = np.array([(len(pair.chosen), len(pair.rejected)) for pair in pairs], np.int64)
        details = np.array([pair.details for pair in pairs], PAIR)
        chosen_ends, rejected_ends = ends.reshape(-1, 2).T
        chosen_lengths, rejected_lengths = lengths.reshape(-1, 2).T
        return {
            **layout.batch(),
            "chosen_ends": _tensor(chosen_ends),
            "rejected_ends": _tensor(rejected_ends),
            "chosen_lengths": _tensor(chosen_lengths),
            "rejected_lengths": _tensor(rejected_lengths),
            "ties": _tensor(details["is_tie"]),
            "margins": _tensor(details["margin"]),
            "chosen_scores": _tensor(details["chosen_score"]),
            "rejected_scores": _tensor(details["rejected_score"]),
        }

    @staticmethod
    def _add(layout: SpanLayout, row: int, pair: Pair) -> tuple[int, int]:
        start, shared = layout.lengths[row], len(pair.prompt)
        chosen_end = layout.add(row, np.concatenate([pair.prompt, pair.chosen]))
        return chosen_end, layout.add(row, pair.rejected, slice(start, start + shared) if shared else slice(0, 0))


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Of a copy, as torch takes no fields of records."""
    return torch.from_numpy(array.copy())
