"""The order of training: a pure function of one global sample index, whatever the number of ranks or workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from datamodules.errors import DataError
from datamodules.storage.hashing import mix

ROUNDS = 6


@lru_cache(maxsize=4096)
def _round_keys(*key: int) -> np.ndarray:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, "<u8")


def permute(positions: np.ndarray, size: int, *key: int) -> np.ndarray:
    """Where each position goes in a pseudo-random permutation of `size` that `key` names.

    A Feistel network over the next power of four, walked until it lands inside (Black & Rogaway, "Ciphers with
    Arbitrary Finite Domains", 2002): no table, so a billion rows cost as little as ten.

    Args:
        positions: (N,) int64, each in 0..size-1.

    Returns:
        (N,) int64, each in 0..size-1; a bijection.
    """
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    low = np.uint64((1 << int(half)) - 1)
    keys = _round_keys(size, *key)
    values = positions.astype(np.uint64)
    walking = np.ones(len(values), bool)
    while walking.any():
        left, right = values[walking] >> half, values[walking] & low
        for round_key in keys:
            left, right = right, left ^ (mix(right, round_key) & low)
        values[walking] = (left << half) | right
        walking = values >= np.uint64(size)
    return values.astype(np.int64)


class ShuffledOrder:
    """An endless shuffled stream over one or several sources of rows.

    An epoch has as many samples as there are rows. Without weights it holds every row once. With weights each source
    has its share of every epoch, and walks through its own rows again and again, each time in another order.

    Args:
        num_rows: rows of each source; row ids count through the sources.
        weights: the sources' relative shares; None for every row once an epoch.
        seed: names the order.
        period: what is added to a row's id each time that it comes again, for rows of which there are many versions.

    Raises:
        DataError: a source's weight is too small for a single row of an epoch.
    """

    def __init__(
        self, num_rows: Sequence[int], weights: Sequence[float] | None = None, seed: int = 0, period: int = 0
    ) -> None:
        self.num_rows = np.array(num_rows, np.int64)
        self.epoch_len = int(self.num_rows.sum())
        self.seed = seed
        self.period = period
        self.counts = self.num_rows if weights is None else _shares(np.array(weights, float), self.epoch_len)
        if weights is not None and not self.counts.all():
            raise DataError(f"sources: a weight of {weights} is too small for even one of {self.epoch_len} rows")

    def __getitem__(self, samples: np.ndarray) -> np.ndarray:
        """(N,) int64 row ids for (N,) int64 global sample indices, which go on over the epochs without end."""
        rows = np.empty(len(samples), np.int64)
        epochs, within = np.divmod(samples, self.epoch_len)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            rows[now] = permute(within[now], self.epoch_len, self.seed, int(epoch))
        # `rows` are slots now; each source owns a range of an epoch's slots.
        ends, bases = np.cumsum(self.counts), np.cumsum(self.num_rows) - self.num_rows
        sources = np.searchsorted(ends, rows, side="right")
        steps = epochs * self.counts[sources] + rows - (ends - self.counts)[sources]
        rounds, places = np.divmod(steps, self.num_rows[sources])
        for source, turn in {*zip(sources.tolist(), rounds.tolist(), strict=True)}:
            now = (sources == source) & (rounds == turn)
            order = permute(places[now], int(self.num_rows[source]), self.seed, turn, source)
            rows[now] = bases[source] + order + turn * self.period
        return rows


class SequentialOrder:
    """Every row once, source by source, in order, then blank rows (-1) up to a multiple of `multiple` for each source.

    Blank rows let all ranks validate on equally many batches of equal shape, each real row counted once.
    """

    def __init__(self, num_rows: Sequence[int], multiple: int) -> None:
        self.num_rows = np.array(num_rows, np.int64)
        self._ends = np.cumsum(-(-self.num_rows // multiple) * multiple)
        self.epoch_len = int(self._ends[-1])

    def __getitem__(self, samples: np.ndarray) -> np.ndarray:
        """(N,) int64 row ids for (N,) int64 sample indices."""
        sources = np.minimum(np.searchsorted(self._ends, samples, side="right"), len(self._ends) - 1)
        within = samples - np.concatenate([[0], self._ends])[sources]
        bases = np.cumsum(self.num_rows) - self.num_rows
        return np.where(within < self.num_rows[sources], bases[sources] + within, -1)


def _shares(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in the ratio of the weights that add up to `total`, by largest remainders."""
    exact = weights / weights.sum() * total
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts
