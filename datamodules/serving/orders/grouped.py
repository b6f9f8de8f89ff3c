"""Batches of rows of similar length, in a shuffled order."""

from __future__ import annotations

import numpy as np

from datamodules.serving.loader import Order
from datamodules.serving.orders.order import permute

BATCHES_A_WINDOW = 16
"""Within so many batches rows change places: enough that a batch's lengths are alike, and still well mixed."""


class GroupedOrder:
    """Another order of the same endless stream: each window is sorted by length, cut into batches, and these shuffled.

    Args:
        order: the stream.
        lengths: (N,) of each row.
        batch_len: rows of a batch over all ranks.
        seed: names the order of the batches.
    """

    def __init__(self, order: Order, lengths: np.ndarray, batch_len: int, seed: int = 0) -> None:
        self.order = order
        self.lengths = lengths
        self.batch_len = batch_len
        self.seed = seed
        self.epoch_len = order.epoch_len
        self._newest: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __getitem__(self, samples: np.ndarray) -> np.ndarray:
        """(N,) int64 row ids for (N,) int64 global sample indices."""
        windows, within = np.divmod(samples, BATCHES_A_WINDOW * self.batch_len)
        rows = np.empty(len(samples), np.int64)
        for window in np.unique(windows):
            now = windows == window
            rows[now] = self._window(int(window))[within[now]]
        return rows

    def _window(self, number: int) -> np.ndarray:
        if self._newest[0] != number:
            length = BATCHES_A_WINDOW * self.batch_len
            rows = self.order[np.arange(number * length, (number + 1) * length)]
            batches = rows[np.argsort(self.lengths[rows], kind="stable")].reshape(BATCHES_A_WINDOW, -1)
            places = permute(np.arange(BATCHES_A_WINDOW), BATCHES_A_WINDOW, self.seed, number)
            self._newest = number, batches[places].ravel()
        return self._newest[1]
