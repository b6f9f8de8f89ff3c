"""Intervals and tests: scipy's figures on the same numbers, and what they promise, on simulated data."""

import math

import numpy as np
import pytest
from scipy import stats

from llm_lightning.measuring.statistics import (
    bootstrap_interval,
    holm,
    mcnemar_p,
    paired_bootstrap,
    paired_shares,
    smallest_mean,
    smallest_share,
    wilson_interval,
)


@pytest.mark.parametrize(("right", "count"), [(8, 10), (0, 7), (7, 7), (120, 450)])
def test_wilsons_interval_is_scipys(right, count):
    theirs = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert wilson_interval(right, count) == pytest.approx((theirs.low, theirs.high), abs=2e-5)  # its z is not rounded


@pytest.mark.parametrize(("losses", "wins"), [(0, 0), (0, 1), (0, 6), (3, 12), (12, 3), (10, 10), (9, 10), (450, 512)])
def test_mcnemars_p_is_scipys(losses, wins):
    theirs = stats.binomtest(losses, losses + wins).pvalue if losses + wins else 1.0
    assert mcnemar_p(losses, wins) == pytest.approx(theirs, rel=1e-9)


def test_mcnemars_p_of_ten_thousand_items():
    assert mcnemar_p(4_900, 5_100) == pytest.approx(stats.binomtest(4_900, 10_000).pvalue, rel=1e-8)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_bootstraps_interval_is_scipys(seed):
    values = np.random.default_rng(seed).exponential(size=60)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=50_000, method="BCa", rng=np.random.default_rng(7))
    ours = bootstrap_interval(values, num_resamples=50_000)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.03 * width)


def test_the_bootstrap_of_weighted_clusters_is_scipys():
    generator = np.random.default_rng(3)
    values, weights, clusters = generator.normal(size=200), generator.integers(1, 9, 200), np.repeat(np.arange(40), 5)
    sums, sizes = np.bincount(clusters, values * weights), np.bincount(clusters, weights)
    theirs = stats.bootstrap(
        (sums, sizes), lambda s, w, axis: s.sum(axis) / w.sum(axis), paired=True, n_resamples=50_000,
        vectorized=True, method="BCa", rng=generator,
    )  # fmt: skip
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    ours = bootstrap_interval(values, [f"passage {each}" for each in clusters], weights, num_resamples=50_000)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.03 * width)


def test_very_many_items_need_no_draws_of_each(monkeypatch):
    generator = np.random.default_rng(2)
    values, weights = generator.exponential(size=5_000), generator.integers(1, 9, 5_000)
    drawn = bootstrap_interval(values, weights=weights)
    monkeypatch.setattr("llm_lightning.measuring.statistics.MOST_RESAMPLED", 4_000)
    assert bootstrap_interval(values, weights=weights) == pytest.approx(drawn, abs=0.05 * (drawn[1] - drawn[0]))


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_interval(values) == bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_intervals_hold_what_they_promise():
    generator = np.random.default_rng(11)
    rights = generator.binomial(40, 0.9, 4_000)
    intervals = [wilson_interval(right, 40) for right in rights]
    assert np.mean([low <= 0.9 <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.02)
    samples = generator.exponential(size=(400, 50))
    intervals = [bootstrap_interval(each, num_resamples=1_000) for each in samples]
    assert 0.90 < np.mean([low <= 1 <= high for low, high in intervals]) < 0.97


def test_items_that_share_a_source_need_clusters():
    generator = np.random.default_rng(5)
    clusters = np.repeat(np.arange(40), 8)
    held = {"clustered": 0, "plain": 0}
    for _ in range(300):
        values = generator.normal(size=40)[clusters] + 0.5 * generator.normal(size=len(clusters))
        for name, given in (("clustered", clusters), ("plain", None)):
            low, high = bootstrap_interval(values, given, num_resamples=1_000)
            held[name] += low <= 0 <= high
    assert held["clustered"] / 300 > 0.9 and held["plain"] / 300 < 0.65


def simulated_pairs(generator, count, losses, wins):
    """Answers of two models, of which one alone is right in these shares of the items."""
    kinds = generator.choice(4, count, p=[losses, wins, 0.4, 0.6 - losses - wins])
    return np.isin(kinds, [0, 2]).astype(float), np.isin(kinds, [1, 2]).astype(float)


def exact_power(count, losses, wins):
    """Of McNemar's exact test at 0.05, over all tables of two by two."""
    discordant, power = np.arange(count + 1), 0.0
    for k, probability in zip(discordant, stats.binom.pmf(discordant, count, losses + wins), strict=True):
        if probability > 1e-9:
            rejected = [i for i in range(k + 1) if mcnemar_p(i, k - i) <= 0.05]
            power += probability * stats.binom.pmf(rejected, k, wins / (losses + wins)).sum()
    return power


def test_a_known_difference_of_shares_is_found_as_often_as_theory_says():
    count, discordance = 400, 0.2
    smallest = smallest_share(discordance, count)
    losses, wins = (discordance - smallest) / 2, (discordance + smallest) / 2
    power = exact_power(count, losses, wins)
    assert power == pytest.approx(0.8, abs=0.04)  # the exact test is a little conservative
    generator = np.random.default_rng(2)
    found = [paired_shares(*simulated_pairs(generator, count, losses, wins)).p <= 0.05 for _ in range(2_000)]
    assert np.mean(found) == pytest.approx(power, abs=3 * math.sqrt(0.8 * 0.2 / 2_000))


def test_equal_models_are_rarely_told_apart_and_intervals_of_shares_hold():
    generator = np.random.default_rng(4)
    found = [paired_shares(*simulated_pairs(generator, 80, 0.1, 0.1)) for _ in range(2_000)]
    assert 0.005 < np.mean([each.p <= 0.05 for each in found]) <= 0.05
    assert np.mean([each.low <= 0 <= each.high for each in found]) == pytest.approx(0.955, abs=0.02)
    moved = [paired_shares(*simulated_pairs(generator, 80, 0.02, 0.1)) for _ in range(2_000)]
    assert np.mean([each.low <= 0.08 <= each.high for each in moved]) == pytest.approx(0.955, abs=0.02)


def test_a_known_difference_of_means_is_found_as_often_as_theory_says():
    generator, count = np.random.default_rng(9), 150
    smallest, found, level = smallest_mean(1 / math.sqrt(count)), 0, 0
    for _ in range(400):
        first, noise = generator.normal(size=count), generator.normal(size=count)
        found += paired_bootstrap(first, first + noise + smallest, num_resamples=1_000).p <= 0.05
        level += paired_bootstrap(first, first + noise, num_resamples=1_000).p <= 0.05
    assert found / 400 == pytest.approx(0.8, abs=0.06)
    assert level / 400 == pytest.approx(0.05, abs=0.033)


def test_an_interval_and_its_p_agree():
    generator = np.random.default_rng(6)
    for shift in np.linspace(-0.4, 0.4, 41):
        first = generator.exponential(size=60)
        found = paired_bootstrap(first, first + generator.exponential(size=60) - 1 + shift, num_resamples=2_000)
        assert (found.low <= 0 <= found.high) == (found.p > 0.05) or found.p == pytest.approx(0.05, abs=0.004)
        assert found.value == pytest.approx(stats.tmean([found.value]))


@pytest.mark.parametrize("seed", range(5))
def test_the_bootstraps_p_is_near_that_of_a_permutation(seed):
    generator = np.random.default_rng(seed)
    first = generator.normal(size=200)
    second = first + generator.normal(0.15, 1, 200)
    theirs = stats.permutation_test(
        (first, second),
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type="samples",
        vectorized=True,
        rng=generator,
    ).pvalue
    assert paired_bootstrap(first, second).p == pytest.approx(theirs, abs=0.02)


def test_models_that_answer_alike():
    same = np.array([0.0, 1, 1, 0, 1])
    shares, means = paired_shares(same, same), paired_bootstrap(same, same)
    assert shares.p == means.p == 1 and shares.value == means.value == 0
    assert shares.low < 0 < shares.high  # five items cannot say more
    assert shares.smallest == pytest.approx(0.94, abs=0.01)


@pytest.mark.parametrize(
    ("discordance", "count"), [(0.0, 100), (0.001, 1_000), (0.2, 1), (0.5, 3), (1.0, 10), (0.3, 0.9)]
)
def test_the_smallest_difference_is_always_a_share(discordance, count):
    assert 0 < smallest_share(discordance, count) <= 1


def test_more_items_show_less():
    assert (
        smallest_share(0.2, 400) > smallest_share(0.2, 1_600) == pytest.approx(smallest_share(0.2, 400) / 2, rel=0.01)
    )


def test_one_item_has_no_interval():
    assert all(map(math.isnan, bootstrap_interval([0.5])))
    assert all(map(math.isnan, bootstrap_interval([0.5, 0.2], ["a", "a"])))
    found = paired_bootstrap([0.5], [0.7])
    assert found.value == pytest.approx(0.2) and math.isnan(found.p) and math.isnan(found.low)


def test_holms_correction_is_that_of_the_textbook():
    # Holm (1979): ordered p times 4, 3, 2, 1, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
