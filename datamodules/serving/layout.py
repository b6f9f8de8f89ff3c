"""Documents in rows of equal length, one after the other."""

from __future__ import annotations

import numpy as np
import torch

from datamodules.contract import SpanBatch


class Layout:
    """Rows that documents are put into; what these leave free is padded.

    Args:
        num_rows: B.
        seq_len: T.
        pad_token_id: what is padded with; it is never in the loss nor read.

    Attributes:
        input_ids, position_ids: (B, T) int64; positions begin anew at each document.
        lengths: tokens that each row holds so far.
    """

    def __init__(self, num_rows: int, seq_len: int, pad_token_id: int) -> None:
        self.input_ids = np.full((num_rows, seq_len), pad_token_id, np.int64)
        self.position_ids = np.empty_like(self.input_ids)
        self.lengths = [0] * num_rows
        self._count = np.arange(seq_len)

    def put(self, row: int, ids: np.ndarray, position: int = 0) -> slice:
        """Put a document into a row.

        Args:
            row: which one.
            ids: (n,) its tokens.
            position: of the first one.

        Returns:
            Where in the row it stands.
        """
        start, end = self.lengths[row], self.lengths[row] + len(ids)
        self.input_ids[row, start:end] = ids
        self.position_ids[row, start:end] = self._count[position : position + len(ids)]
        self.lengths[row] = end
        return slice(start, end)

    def pad(self) -> list[tuple[int, slice]]:
        """Make a document of what is free at the rows' ends; returns row and place of each."""
        num_tokens = self.input_ids.shape[1]
        free = [(row, self.input_ids[row, length:]) for row, length in enumerate(self.lengths) if length < num_tokens]
        return [(row, self.put(row, padding)) for row, padding in free]


class SpanLayout(Layout):
    """A layout in which a document may begin with the prompt of an earlier one; see `Layout` for the arguments."""

    def __init__(self, num_rows: int, seq_len: int, pad_token_id: int) -> None:
        super().__init__(num_rows, seq_len, pad_token_id)
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
        place = self.put(row, ids, prompt.stop - prompt.start)
        self.spans[row].append((row, place.start, place.stop, prompt.start, prompt.stop))
        return row * self.input_ids.shape[1] + place.stop - 1

    def batch(self) -> SpanBatch:
        """The rows as tensors; what is padded at a row's end is a document as well."""
        for row, place in self.pad():
            self.spans[row].append((row, place.start, place.stop, 0, 0))
        spans = np.array([span for spans in self.spans for span in spans], np.int64)
        return {
            "input_ids": torch.from_numpy(self.input_ids),
            "position_ids": torch.from_numpy(self.position_ids),
            "spans": torch.from_numpy(spans),
        }
