"""Each prompt with an answer to another one, on which KTO estimates the KL from the reference (arXiv:2402.01306)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from datamodules.contract import MismatchBatch
from datamodules.serving.layout import SpanLayout
from datamodules.serving.pairs import AnswerTokens, Pair, PairRows

ROUNDING = 64
"""Rows are padded to a multiple of this, so that not every batch has a shape of its own."""


class Mismatch(NamedTuple):
    """A prompt and an answer to another one.

    Args:
        ids: (n,) of both.
        trained: (n,) bool, which of them belong to the answer.
        number: of the pair whose prompt it is, among all.
    """

    ids: np.ndarray
    trained: np.ndarray
    number: int


class MismatchedRows(PairRows):
    """For each row of pairs its prompts, each with an answer of the next pair that asks something else: chosen and
    rejected ones in turn, or the only one there is.

    The last pair of a row takes one of the next row, so that a row of a single pair has a mismatch too. What comes out
    is a function of the row alone, however rows are put into batches.
    """

    def __init__(self, sources: Sequence, seq_len: int) -> None:
        super().__init__(sources)
        self.seq_len = seq_len

    def __getitem__(self, row: int) -> list[Mismatch]:  # type: ignore[override]
        if row < 0:
            return []
        pairs = super().__getitem__(row)
        ring = [*pairs, self._first_of((row + 1) % len(self)), *pairs]
        return [self._mismatch(pair, ring[place + 1 :]) for place, pair in enumerate(pairs)]

    def _first_of(self, row: int) -> Pair:
        return super().__getitem__(row)[0]

    def _mismatch(self, pair: Pair, following: Sequence[Pair]) -> Mismatch:
        other = next((one for one in following if not _asks_same(one, pair)), following[0])
        prompt, _ = parts(pair, 0)
        _, (answer, trained) = parts(other, pair.number % 2 if other.only is None else other.only)
        ids = np.concatenate([prompt[0], answer])[: self.seq_len]
        return Mismatch(ids, np.concatenate([prompt[1] & False, trained])[: self.seq_len], pair.number)


def _asks_same(one: Pair, other: Pair) -> bool:
    """Whether both have the prompt in common, by its MinHash."""
    return bool((one.details["bands"] == other.details["bands"]).all())


def parts(pair: Pair, which: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Prompt and answer of a pair's chosen (0) or rejected (1) side, each as token ids and which are in the answer."""
    own = 1 + which
    ids, trained = np.concatenate([pair.prompt, pair[own]]), np.concatenate([pair.trained[0], pair.trained[own]])
    places = np.flatnonzero(trained)
    begin, end = (int(places[0]), int(places[-1]) + 1) if len(places) else (len(ids), len(ids))
    return (ids[:begin], trained[:begin]), (ids[begin:end], trained[begin:end])


@dataclass(frozen=True)
class MismatchCollator:
    """Makes one row of all that the rows of a batch hold.

    Args:
        pad_token_id: what is padded with.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[list[Mismatch]]) -> MismatchBatch:
        """A batch of K answers in one row."""
        found = [one for row in rows for one in row]
        length = max(ROUNDING, -(-sum(len(one.ids) for one in found) // ROUNDING) * ROUNDING)
        layout, answers = SpanLayout(1, length, self.pad_token_id), AnswerTokens()
        for one in found:
            end = layout.add(0, one.ids)
            answers.add([one.ids], [one.trained], [np.arange(end + 1 - len(one.ids), end + 1)])
        numbers = torch.tensor([one.number for one in found], dtype=torch.int64)
        return {**layout.batch(), **answers.batch(), "numbers": numbers}
