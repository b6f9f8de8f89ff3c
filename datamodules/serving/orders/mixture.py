"""A mixture of sources whose shares change while it is read, by a schedule or because they are told to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from datamodules.errors import DataError
from datamodules.serving.orders.order import permute

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: its multiples fall more evenly than those of any other number (Weyl's sequence)."""
BLOCK = 1 << 14
"""Samples that are chosen at once."""
ENDLESS = np.iinfo(np.int64).max


class Share(NamedTuple):
    """A source's part in a mixture.

    Args:
        num_rows: the rows it has; 0 where nobody knows, which says nothing of its part.
        weight: (P, 2) points of a sample index and the weight there; between them it is linear.
        most: samples it may give in all; None for any number, its rows again and again.
    """

    num_rows: int
    weight: np.ndarray
    most: int | None = None


class Mixture:
    """Which source each sample of an endless stream comes from, each with the share that its weight has at that moment.

    The source of a sample is where a multiple of the golden ratio falls among the shares: a function of the index, the
    seed and the weights alone, and in any thousand samples within about 1 % of what the weights say. What was used up
    leaves its share to the others.

    How many samples of each source came before is counted block by block, some seven million a second, once a start.

    Args:
        shares: of the sources.
        seed: names the order.
    """

    def __init__(self, shares: Sequence[Share], seed: int = 0) -> None:
        self.shares = list(shares)
        self.seed = seed
        digest = hashlib.blake2b(repr(("mixture", seed)).encode(), digest_size=8).digest()
        self._offset = np.uint64(int.from_bytes(digest, "little"))
        self._most = np.array([ENDLESS if share.most is None else share.most for share in shares], np.int64)
        self._before = [np.zeros(len(shares), np.int64)]
        self._newest = lru_cache(maxsize=4)(self._block)

    def places(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) int64 the sources of (N,) int64 global sample indices, which go on without end, and (N,) int64 how many
        samples of the same source come before each.

        Raises:
            DataError: all sources are used up.
        """
        sources, steps = np.empty(len(samples), np.int64), np.empty(len(samples), np.int64)
        blocks, within = np.divmod(samples, BLOCK)
        for block in np.unique(blocks):
            here = blocks == block
            sources[here], steps[here] = (column[within[here]] for column in self._newest(int(block)))
        self._check(sources, samples)
        return sources, steps

    def reweigh(self, sample: int, weights: Sequence[float]) -> None:
        """From a sample on the sources have other weights, which stay; what comes before stays as it was.

        Args:
            sample: global index; changes are told in the order of these.
            weights: of the first sources; those beyond keep theirs.
        """
        for number, weight in enumerate(weights):
            points = self.shares[number].weight
            kept = points[points[:, 0] < sample - 1]
            last = float(np.interp(sample - 1, *points.T))  # the way from one to the other lies between two samples
            changed = np.array([*kept, (sample - 1, last), (sample, weight)])
            self.shares[number] = self.shares[number]._replace(weight=changed)
        self._forget(sample)

    def end(self, source: int, most: int) -> None:
        """A source turned out to have so many samples in all; it did not give more so far."""
        self._most[source] = most
        self._forget(BLOCK * (sum(before[source] <= most for before in self._before) - 1))

    def ends(self) -> list[int | None]:
        """How many samples each source may give in all; None for any number, as far as it is known."""
        return [None if most == ENDLESS else int(most) for most in self._most]

    def _forget(self, sample: int) -> None:
        """Of what was counted, the block of a sample and those behind."""
        del self._before[sample // BLOCK + 1 :]
        self._newest.cache_clear()

    def counts(self, num_samples: int) -> np.ndarray:
        """(S,) int64: how many of the first samples come from each source."""
        block, within = divmod(num_samples, BLOCK)
        counts = self._counts_before(block)
        if within:
            sources = self._newest(block)[0][:within]
            self._check(sources, block * BLOCK + np.arange(within))
            counts = counts + np.bincount(sources, minlength=len(self.shares))
        return counts

    def _check(self, sources: np.ndarray, samples: np.ndarray) -> None:
        if (sources < 0).any():
            first = int(samples[sources < 0].min())
            raise DataError(
                f"sources: at row {first:,} of the run every source is used up (max_epochs) or has the weight 0; raise "
                "one, or train on fewer tokens"
            )

    def _counts_before(self, block: int) -> np.ndarray:
        while len(self._before) <= block:
            last = len(self._before) - 1
            chosen = self._choose(last)
            self._check(chosen, last * BLOCK + np.arange(BLOCK))
            self._before.append(self._before[last] + np.bincount(chosen, minlength=len(self.shares)))
        return self._before[block]

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(BLOCK,) the source of each sample of a block, and how many samples of that source came before it."""
        before = self._counts_before(block)
        sources = self._choose(block)
        steps = np.empty(BLOCK, np.int64)
        for source, count in enumerate(before):
            places = np.flatnonzero(sources == source)
            steps[places] = count + np.arange(len(places))
        return sources, steps

    def _choose(self, block: int) -> np.ndarray:
        """(BLOCK,) the source of each sample; -1 from where every source is used up or has the weight 0."""
        samples = block * BLOCK + np.arange(BLOCK)
        with np.errstate(over="ignore"):
            places = ((samples.astype(np.uint64) * GOLDEN + self._offset) >> np.uint64(32)) * 2.0**-32
        weights = np.stack([np.interp(samples, *share.weight.T) for share in self.shares], axis=1)
        left = (self._most - self._counts_before(block)).tolist()
        sources, start = np.empty(BLOCK, np.int64), 0
        while start < BLOCK:
            ends = np.cumsum(weights[start:], axis=1)
            sources[start:] = (places[start:, None] * ends[:, -1:] >= ends[:, :-1]).sum(axis=1)
            sources[start:][ends[:, -1] == 0] = -1
            beyond = [np.flatnonzero(sources == source)[count:] for source, count in enumerate(left)]
            start = min((int(places[0]) for places in beyond if len(places)), default=BLOCK)
            if start < BLOCK:
                weights[start:, sources[start]] = 0.0
        return sources


class MixtureOrder(Mixture):
    """The rows of sources that are mixed: each source walks through its own, each once before any comes again, each
    time in another order.

    Args:
        shares: of the sources; row ids count through them.
        seed: names the order.
        period: what is added to a row's id each time that it comes again; see `ShuffledOrder`.
    """

    def __init__(self, shares: Sequence[Share], seed: int = 0, period: int = 0) -> None:
        super().__init__(shares, seed)
        self.period = period
        self.num_rows = np.array([share.num_rows for share in shares], np.int64)
        self.epoch_len = int(self.num_rows.sum())

    def __getitem__(self, samples: np.ndarray) -> np.ndarray:
        """(N,) int64 row ids for (N,) int64 global sample indices; see `places`."""
        sources, steps = self.places(samples)
        bases = np.cumsum(self.num_rows) - self.num_rows
        rows = np.empty(len(samples), np.int64)
        rounds, places = np.divmod(steps, self.num_rows[sources])
        for source, turn in {*zip(sources.tolist(), rounds.tolist(), strict=True)}:
            now = (sources == source) & (rounds == turn)
            order = permute(places[now], int(self.num_rows[source]), self.seed, turn, source)
            rows[now] = bases[source] + order + turn * self.period
        return rows
