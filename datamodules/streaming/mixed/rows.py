"""The rows of several streams by their numbers, and which one comes when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from datamodules.serving.collate import Row
from datamodules.serving.orders.mixture import Mixture
from datamodules.streaming.rows import StreamOrder, StreamRows
from datamodules.transformations.draws import Draw

STREAM_BITS = 52  # of a row's number: which row of its stream; the others say which stream


class MixedStreamRows(Dataset[Row]):
    """The rows of the windows that are on disk; row -1 is blank.

    Args:
        folders: of each stream's windows.
        draw: makes the version of a row that is served; None: as it is.
    """

    def __init__(self, folders: Sequence[Path], draw: Draw | None = None) -> None:
        self.streams = [StreamRows(folder) for folder in folders]
        self.draw = draw

    def __getitem__(self, number: int) -> Row:
        if number < 0:
            return []
        pieces = self.streams[number >> STREAM_BITS][number & ((1 << STREAM_BITS) - 1)]
        return pieces if self.draw is None else self.draw(pieces, time=0, number=number)


class MixedStreamOrder:
    """The rows of several streams as a mixture says it, of each in its own order.

    How many rows a stream has is not known before its end was read. So where it may be read so often only, its windows
    are opened as far as the mixture asks for them, on every rank, before any row is given out that depends on its end.

    Args:
        mixture: of the streams.
        orders: of each one.
        most_turns: how often each may be read; None: without end.
    """

    def __init__(self, mixture: Mixture, orders: Sequence[StreamOrder], most_turns: Sequence[int | None]) -> None:
        self.mixture = mixture
        self.orders = list(orders)
        self.most_turns = list(most_turns)
        self.epoch_len = orders[0].epoch_len

    def __getitem__(self, samples: np.ndarray) -> np.ndarray:
        """(N,) int64 row numbers for (N,) int64 global sample indices, which grow from call to call.

        Raises:
            DataError: a stream cannot be read, or all were read as often as they may be.
        """
        while self._finds_end(int(samples[-1]) + 1):
            pass
        streams, steps = self.mixture.places(samples)
        rows = np.empty(len(samples), np.int64)
        for number, order in enumerate(self.orders):
            now = streams == number
            if now.any():
                rows[now] = order[steps[now]] + (number << STREAM_BITS)
        return rows

    def _finds_end(self, num_samples: int) -> bool:
        """Whether the end of a stream lies within so many samples that the mixture did not know of."""
        open_ends = [
            (number, turns)
            for number, turns in enumerate(self.most_turns)
            if turns is not None and self.mixture.ends()[number] is None
        ]
        counts = self.mixture.counts(num_samples) if open_ends else np.zeros(0, np.int64)
        for number, turns in open_ends:
            windows = self.orders[number].windows
            if counts[number]:
                windows.reach(int(counts[number]) - 1)
            behind = [opened.place.sample for opened in windows.opened if opened.place.begin.turn >= turns]
            if behind:
                self.mixture.end(number, behind[0])
                return True
        return False
