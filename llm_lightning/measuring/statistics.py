"""What a score of n items tells of all items like them: intervals, and paired tests of two models.

All here is deterministic: what is drawn is drawn from a seed. Levels are two-sided.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

NUM_RESAMPLES = 10_000
"""Of a bootstrap: the limits of a 95 % interval then vary by about a fiftieth of its width with the seed."""

MOST_DRAWN_AT_ONCE = 2**20
"""Numbers that a bootstrap holds in memory at a time."""

MOST_RESAMPLED = 50_000
"""Items or clusters that are drawn one by one. The mean of more is normally distributed, and is drawn from that."""

LARGEST = 1e100
"""Of a score; the cubes of larger ones are no numbers any more."""

NORMAL = NormalDist()


class Difference(NamedTuple):
    """Of two models' mean scores on the same items, the second minus the first.

    Args:
        value: the difference.
        low, high: where it lies with 95 % confidence.
        p: probability of a difference as far from 0 as this one if the two were equally good.
        smallest: the smallest true difference that this many items would have shown in four of five such comparisons.
    """

    value: float
    low: float
    high: float
    p: float
    smallest: float


def wilson_interval(right: float, count: float, z: float = 1.96) -> tuple[float, float]:
    """Where a share lies with 95 % confidence after `right` of `count` trials (Wilson, 1927)."""
    share = right / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, middle - reach), min(1.0, middle + reach)  # what rounding puts beyond them


def bootstrap_interval(
    values: Any,
    clusters: Sequence[Any] | None = None,
    weights: Any = None,
    *,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Where a mean lies, by the bias-corrected and accelerated bootstrap (BCa; Efron, 1987).

    BCa and not percentiles: scores of items are often skewed (most items 0, a few 1), and there the percentiles of a
    few hundred items miss on one side more often than on the other. What BCa asks for beside them, a jackknife, costs
    nothing for a mean.

    Args:
        values: a score for each item (N,).
        clusters: what each item shares with others (a passage, a problem); whole clusters are drawn then, since their
            items are not independent. Without: each item stands for itself.
        weights: of the items in the mean (N,), as for a score per word or byte; equal if not given.
        confidence: share of such intervals that hold the true mean.
        num_resamples: how often items are drawn.
        seed: of the draws.

    Returns:
        Lower and upper limit; not numbers where there are fewer than two items or clusters, or a score is none.
    """
    bootstrap = _Bootstrap(*_sums(values, clusters, weights), num_resamples, seed)
    return bootstrap.interval(confidence)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """McNemar's exact test: are as many items solved by the first model alone as by the second alone?

    Args:
        only_first: items that only the first model solves.
        only_second: items that only the second model solves.
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    if count == 0:
        return 1.0
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    k = np.arange(fewer + 1)
    logs = log_factorials[count] - log_factorials[k] - log_factorials[count - k] - count * math.log(2)
    return min(1.0, 2 * float(np.exp(logs).sum()))


def paired_shares(first: Any, second: Any) -> Difference:
    """Compare two models' right answers (0 or 1, (N,)) to the same independent items.

    The test is McNemar's exact one. The interval is Agresti and Min's (2005), which holds its level for few items, too,
    and is no point where the models differ in no item, as that of a bootstrap would be.
    """
    first, second = np.asarray(first) > 0.5, np.asarray(second) > 0.5
    count = len(first)
    losses, wins = int((first & ~second).sum()), int((second & ~first).sum())
    # Half an item more in each cell of the table of two by two.
    n, b, c = count + 2, losses + 0.5, wins + 0.5
    reach = NORMAL.inv_cdf(0.975) * math.sqrt(b + c - (c - b) ** 2 / n) / n
    middle = (c - b) / n
    value = (wins - losses) / count
    low, high = max(-1.0, middle - reach), min(1.0, middle + reach)
    smallest = smallest_share((losses + wins) / count, count)
    return Difference(value, low, high, mcnemar_p(losses, wins), smallest)


def paired_bootstrap(
    first: Any,
    second: Any,
    clusters: Sequence[Any] | None = None,
    weights: Any = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compare two models' scores of the same items (N,): items, or clusters, are drawn with both of their scores.

    The interval is BCa's, and p the level at which it would just touch 0: the two never contradict each other. Clusters
    and weights are as for `bootstrap_interval`.
    """
    differences = np.asarray(second, float) - np.asarray(first, float)
    bootstrap = _Bootstrap(*_sums(differences, clusters, weights), num_resamples, seed)
    low, high = bootstrap.interval(0.95)
    return Difference(bootstrap.mean, low, high, bootstrap.p_of_zero(), smallest_mean(bootstrap.standard_error))


def smallest_share(discordance: float, count: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest difference of two shares that McNemar's test finds with this power (Connor, 1987).

    Args:
        discordance: share of the items that one model alone solves. A difference cannot be larger: where it would have
            to be, all the discordance that is needed is taken to be in favour of one model.
        count: items.
        power: how often it is found.
        alpha: level of the test.
    """
    a, b = NORMAL.inv_cdf(1 - alpha / 2), NORMAL.inv_cdf(power)
    if count <= a**2:
        return 1.0
    smallest = math.sqrt(discordance) * (a * math.sqrt(count) + b * math.sqrt(count - a**2 + b**2)) / (count + b**2)
    if 0 < smallest <= discordance:
        return smallest
    root = (math.sqrt((a * b) ** 2 + (count + b**2) * (count - a**2)) - a * b) / (count + b**2)
    return 1 - root**2


def smallest_mean(standard_error: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest difference of two means that is found with this power, where it has this standard error."""
    return (NORMAL.inv_cdf(1 - alpha / 2) + NORMAL.inv_cdf(power)) * standard_error


def holm(p: Sequence[float]) -> list[float]:
    """The p of several tests, so that one of them is below a level by chance no more often than that (Holm, 1979)."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, highest = [1.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


def _sums(values: Any, clusters: Sequence[Any] | None, weights: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sum and weight of each cluster, float64."""
    values = np.asarray(values, float)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, float)
    if clusters is None:
        return values * weights, weights
    _, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    return np.bincount(index, values * weights), np.bincount(index, weights)


class _Bootstrap:
    """Means of draws of clusters, and what BCa needs beside them."""

    def __init__(self, sums: np.ndarray, weights: np.ndarray, num_resamples: int, seed: int) -> None:
        self.sums, self.weights = sums[weights > 0], weights[weights > 0]
        self.is_known = len(self.sums) > 1 and bool((np.abs(self.sums) < LARGEST).all())
        self.mean = float(self.sums.sum() / self.weights.sum()) if len(self.sums) else math.nan
        if self.is_known:
            self.means = np.sort(self._draw(num_resamples, seed))
            without_one = (self.sums.sum() - self.sums) / (self.weights.sum() - self.weights)
            self._pull = without_one.mean() - without_one

    @property
    def standard_error(self) -> float:
        return float(self.means.std(ddof=1)) if self.is_known else math.nan

    def interval(self, confidence: float) -> tuple[float, float]:
        if not self.is_known:
            return math.nan, math.nan
        if self.means[0] == self.means[-1]:
            return self.mean, self.mean
        z0, acceleration = self._bias(), self._acceleration()
        limits = []
        for share in ((1 - confidence) / 2, (1 + confidence) / 2):
            shifted = z0 + NORMAL.inv_cdf(share)
            limits.append(NORMAL.cdf(z0 + shifted / (1 - acceleration * shifted)))
        low, high = np.quantile(self.means, limits)
        return float(low), float(high)

    def p_of_zero(self) -> float:
        """Twice the share of BCa's limits that lie on the other side of 0 than the mean."""
        if not self.is_known:
            return math.nan
        if self.means[0] == self.means[-1]:
            return 1.0 if self.mean == 0 else 2 / (len(self.means) + 1)
        z0 = self._bias()
        w = NORMAL.inv_cdf(self._share_below(0.0)) - z0
        share = NORMAL.cdf(w / (1 + self._acceleration() * w) - z0)
        return min(1.0, max(2 / (len(self.means) + 1), 2 * min(share, 1 - share)))

    def _draw(self, num_resamples: int, seed: int) -> np.ndarray:
        generator, n = np.random.default_rng(seed), len(self.sums)
        if n > MOST_RESAMPLED:
            residuals = self.sums - self.mean * self.weights
            return generator.normal(self.mean, math.sqrt((residuals**2).sum()) / self.weights.sum(), num_resamples)
        means, at_once = np.empty(num_resamples), max(1, MOST_DRAWN_AT_ONCE // n)
        is_weighted = (self.weights != self.weights[0]).any()
        for begin in range(0, num_resamples, at_once):
            drawn = generator.integers(0, n, (min(at_once, num_resamples - begin), n), dtype=np.int32)
            weight = self.weights[drawn].sum(1) if is_weighted else n * self.weights[0]
            means[begin : begin + len(drawn)] = self.sums[drawn].sum(1) / weight
        return means

    def _share_below(self, value: float) -> float:
        """Of the means, those that are equal by half; never 0 or 1, which no normal quantile belongs to."""
        left, right = (np.searchsorted(self.means, value, side) for side in ("left", "right"))
        count = len(self.means)
        return min(max((left + right) / (2 * count), 1 / (count + 1)), count / (count + 1))

    def _bias(self) -> float:
        return NORMAL.inv_cdf(self._share_below(self.mean))

    def _acceleration(self) -> float:
        cubes, squares = (self._pull**3).sum(), (self._pull**2).sum()
        return float(cubes / (6 * squares**1.5)) if squares > 0 else 0.0
