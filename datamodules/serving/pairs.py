"""Pairs of answers from the token shards, and packed rows of them as a batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from datamodules.encoding.pairs import PAIR
from datamodules.serving.dataset import Documents, PackedRows, TokenSpans


class Pair(NamedTuple):
    """Two answers to one prompt.

    Args:
        prompt: (p,) token ids that both begin with.
        chosen, rejected: (c,) and (r,) token ids behind them.
        facts: the rest that is known, as `PAIR`.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    facts: np.ndarray


def read_pair(tokens: TokenSpans, start: int, length: int) -> Pair:
    """The pair that begins with a token."""
    shard, begin = tokens.locate(start)
    number = shard.document_at(begin)
    facts = shard.details(PAIR)[number : number + 1][0]
    ids = shard.tokens[begin : begin + length]
    chosen = int(facts["shared"])
    rejected = chosen + int(facts["chosen"])
    return Pair(ids[:chosen], ids[chosen:rejected], ids[rejected:], facts)


class PairRows(PackedRows):
    """The packed rows of several sources as lists of pairs; row -1 is blank."""

    def __getitem__(self, row: int) -> list[Pair]:  # type: ignore[override]
        return [read_pair(*piece) for piece in self.pieces(row)]


class Pairs(Documents):
    """Whole pairs of several sources, one after the other."""

    def __getitem__(self, number: int) -> Pair:  # type: ignore[override]
        return read_pair(*self.place(number))


class Layout:
    """Documents one after the other in rows of equal length, some of which begin with the prompt of an earlier one.

    Args:
        num_rows: B.
        seq_len: T; what the documents leave free is padded.
        pad_token_id: what is padded with; no reward ever depends on it.
    """

    def __init__(self, num_rows: int, seq_len: int, pad_token_id: int) -> None:
        self.input_ids = np.full((num_rows, seq_len), pad_token_id, np.int64)
        self.position_ids = np.zeros_like(self.input_ids)
        self.filled = [0] * num_rows
        self.spans: list[list[tuple[int, int, int, int, int]]] = [[] for _ in range(num_rows)]

    def add(self, row: int, ids: np.ndarray, prompt: slice = slice(0, 0)) -> int:
        """Put a document into a row.

        Args:
            row: which one.
            ids: (n,) its own tokens.
            prompt: where in the row the tokens are that it begins with.

        Returns:
            The place of its last token in the flattened rows.
        """
        start, end = self.filled[row], self.filled[row] + len(ids)
        shared = prompt.stop - prompt.start
        self.input_ids[row, start:end] = ids
        self.position_ids[row, start:end] = np.arange(shared, shared + len(ids))
        self.spans[row].append((row, start, end, prompt.start, prompt.stop))
        self.filled[row] = end
        return row * self.input_ids.shape[1] + end - 1

    def batch(self) -> dict[str, torch.Tensor]:
        """`input_ids` and `position_ids` (B, T) int64, where a document's positions count from its prompt's beginning;
        `spans` (M, 5) int64: row, start, end of each document, and start and end of the prompt in front of an earlier
        one that it begins with too (0, 0 for none). What is padded at a row's end is a document as well.
        """
        num_tokens = self.input_ids.shape[1]
        for row, filled in enumerate(self.filled):
            if filled < num_tokens:
                self.add(row, self.input_ids[row, filled:])
        spans = np.array([span for spans in self.spans for span in spans], np.int64)
        arrays = {"input_ids": self.input_ids, "position_ids": self.position_ids, "spans": spans}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@dataclass(frozen=True)
class PairCollator:
    """Makes a batch of rows of pairs; see `Layout` for the arguments."""

    seq_len: int
    pad_token_id: int

    def __call__(self, rows: Sequence[list[Pair]]) -> dict[str, torch.Tensor]:
        """A batch of N pairs in B rows.

        Returns:
            What `Layout.batch` returns, and where the answers' last tokens are in the flattened rows, `chosen_ends` and
            `rejected_ends` (N,) int64; `chosen_lengths` and `rejected_lengths` (N,) int64, tokens behind the shared
            ones; `ties` (N,) bool; `margins`, `chosen_scores`, `rejected_scores` (N,) float32, NaN for no score.
        """
        layout = Layout(len(rows), self.seq_len, self.pad_token_id)
        ends = np.array([self._add(layout, row, pair) for row, pairs in enumerate(rows) for pair in pairs], np.int64)
        pairs = [pair for row in rows for pair in row]
        lengths = np.array([(len(pair.chosen), len(pair.rejected)) for pair in pairs], np.int64)
        facts = np.array([pair.facts for pair in pairs], PAIR)
        arrays = {
            **dict(zip(("chosen_ends", "rejected_ends"), ends.reshape(-1, 2).T, strict=True)),
            **dict(zip(("chosen_lengths", "rejected_lengths"), lengths.reshape(-1, 2).T, strict=True)),
            "ties": facts["is_tie"],
            "margins": facts["margin"],
            "chosen_scores": facts["chosen_score"],
            "rejected_scores": facts["rejected_score"],
        }
        return layout.batch() | {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    @staticmethod
    def _add(layout: Layout, row: int, pair: Pair) -> tuple[int, int]:
        start, shared = layout.filled[row], len(pair.prompt)
        chosen_end = layout.add(row, np.concatenate([pair.prompt, pair.chosen]))
        return chosen_end, layout.add(row, pair.rejected, slice(start, start + shared) if shared else slice(0, 0))
