"""Preference pairs and single answers from the token shards, and packed rows of them as a batch of tensors."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from datamodules.contract import AnswerBatch, PairBatch
from datamodules.encoding.pairs import PAIR
from datamodules.serving.dataset import Documents, PackedRows, TokenSpans
from datamodules.serving.layout import SpanLayout


class Pair(NamedTuple):
    """Two responses to one prompt, or one of them: of a single answer the other side has no tokens.

    Args:
        prompt: (p,) token ids that both begin with.
        chosen, rejected: (c,) and (r,) token ids behind them.
        details: the rest that is known, as `PAIR`.
        trained: (p,), (c,) and (r,) bool, which of the three's tokens belong to an answer.
        number: of the pair among all of its rows.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    details: np.ndarray
    trained: tuple[np.ndarray, np.ndarray, np.ndarray]
    number: int = 0

    @property
    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """The chosen and the rejected response."""
        return self.chosen, self.rejected

    @property
    def only(self) -> int | None:
        """Of a single answer its side, 0 for chosen (it is desirable) and 1 for rejected; None of a pair."""
        there = [side for side, ids in enumerate(self.sides) if len(ids)]
        return there[0] if len(there) == 1 else None


def read_pair(tokens: TokenSpans, start: int, length: int) -> Pair:
    """The pair that begins with a token."""
    shard, begin = tokens.locate(start)
    number = shard.document_at(begin)
    details = shard.details(PAIR)[number : number + 1][0]
    assert shard.trained is not None
    ids, trained = shard.tokens[begin : begin + length], shard.trained[begin : begin + length]
    chosen = int(details["shared"])
    rejected = chosen + int(details["chosen"])
    in_answer = trained[:chosen], trained[chosen:rejected], trained[rejected:]
    return Pair(ids[:chosen], ids[chosen:rejected], ids[rejected:], details, in_answer)


class PairRows(PackedRows):
    """The packed rows of several sources as lists of pairs; row -1 is blank."""

    def __getitem__(self, row: int) -> list[Pair]:  # type: ignore[override]
        first = self.first_number(row)
        return [read_pair(*piece)._replace(number=first + place) for place, piece in enumerate(self.pieces(row))]

    @cached_property
    def num_pairs(self) -> int:
        """In all rows."""
        return sum(map(len, self.spans))

    def first_number(self, row: int) -> int:
        """How many pairs stand in the rows before."""
        if row < 0:
            return 0
        source = bisect_right(self.bases, row) - 1
        begin = row - self.bases[source]
        return sum(map(len, self.spans[:source])) + int(self.rows[source][begin : begin + 1][0])


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
        layout, answers = SpanLayout(len(rows), self.seq_len, self.pad_token_id), AnswerTokens()
        places = [self._add(layout, answers, row, pair) for row, pairs in enumerate(rows) for pair in pairs]
        pairs = [pair for row in rows for pair in row]
        lengths = np.array([(len(pair.chosen), len(pair.rejected)) for pair in pairs], np.int64)
        details = np.array([pair.details for pair in pairs], PAIR)
        chosen_ends, rejected_ends = np.array(places, np.int64).reshape(-1, 2).T
        chosen_lengths, rejected_lengths = lengths.reshape(-1, 2).T
        return {
            **layout.batch(),
            **answers.batch(),
            "chosen_ends": _tensor(chosen_ends),
            "rejected_ends": _tensor(rejected_ends),
            "chosen_lengths": _tensor(chosen_lengths),
            "rejected_lengths": _tensor(rejected_lengths),
            "ties": _tensor(details["is_tie"]),
            "margins": _tensor(details["margin"]),
            "chosen_scores": _tensor(details["chosen_score"]),
            "rejected_scores": _tensor(details["rejected_score"]),
            "numbers": _tensor(np.array([pair.number for pair in pairs], np.int64)),
        }

    @staticmethod
    def _add(layout: SpanLayout, answers: AnswerTokens, row: int, pair: Pair) -> tuple[int, int]:
        if (only := pair.only) is not None:
            return _add_single(layout, answers, row, pair, only)
        start, shared = layout.lengths[row], len(pair.prompt)
        prompt, own, other = (np.arange(len(part)) + row * layout.input_ids.shape[1] for part in pair[:3])
        common = prompt + start
        chosen_end = layout.add(row, np.concatenate([pair.prompt, pair.chosen]))
        answers.add([pair.prompt, pair.chosen], pair.trained[:2], [common, own + start + shared])
        start_of_other = layout.lengths[row]
        rejected_end = layout.add(row, pair.rejected, slice(start, start + shared) if shared else slice(0, 0))
        answers.add([pair.prompt, pair.rejected], pair.trained[::2], [common, other + start_of_other])
        return chosen_end, rejected_end


def _add_single(layout: SpanLayout, answers: AnswerTokens, row: int, pair: Pair, only: int) -> tuple[int, int]:
    ids, trained = [pair.prompt, pair.sides[only]], [pair.trained[0], pair.trained[1 + only]]
    end = layout.add(row, np.concatenate(ids))
    for side in (0, 1):
        if side == only:
            answers.add(ids, trained, [np.arange(end + 1 - sum(map(len, ids)), end + 1)])
        else:
            answers.add_none()
    return end, end


class AnswerTokens:
    """Where the tokens of answers are predicted, one answer after the other."""

    def __init__(self) -> None:
        self.positions: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []

    def add(self, ids: Sequence[np.ndarray], trained: Sequence[np.ndarray], places: Sequence[np.ndarray]) -> None:
        """Add the answer of a sequence.

        Args:
            ids: of the sequence, in parts.
            trained: which of them belong to the answer.
            places: where in the flattened rows they stand.
        """
        is_answer = np.concatenate(trained)[1:]
        self.positions.append(np.concatenate(places)[:-1][is_answer])
        self.targets.append(np.concatenate(ids)[1:][is_answer].astype(np.int64))

    def add_none(self) -> None:
        """Add an answer that is missing."""
        self.positions.append(np.zeros(0, np.int64))
        self.targets.append(np.zeros(0, np.int64))

    def batch(self) -> AnswerBatch:
        """As tensors."""
        empty = np.zeros(0, np.int64)
        return {
            "target_positions": _tensor(np.concatenate([empty, *self.positions])),
            "targets": _tensor(np.concatenate([empty, *self.targets])),
            "num_targets": _tensor(np.array([len(targets) for targets in self.targets], np.int64)),
        }


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Of a copy, as torch takes no fields of records."""
    return torch.from_numpy(array.copy())
