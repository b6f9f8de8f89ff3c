"""Scores and their intervals against formulas, and against what lm-eval's own aggregates give."""

import math

import numpy as np
import pytest

from llm_lightning.evaluation.scores import score
from llm_lightning.measuring.statistics import bootstrap_interval, wilson_interval


def mean(values):
    return sum(values) / len(values)


def test_shares_have_wilsons_interval():
    found = score("acc", [1.0] * 7 + [0.0] * 13, mean, [None] * 20)
    assert (found.value, found.interval) == (0.35, "wilson")
    assert (found.low, found.high) == wilson_interval(7, 20)
    assert found.values.tolist() == [1.0] * 7 + [0.0] * 13


def test_items_that_share_a_source_have_a_wider_one():
    values = [float(number % 4 < 2) for number in range(80)]
    clusters = [str(number // 2) for number in range(80)]
    alone, together = score("acc", values, mean, [None] * 80), score("acc", values, mean, clusters)
    assert together.interval == "cluster bootstrap"
    assert together.high - together.low > 1.2 * (alone.high - alone.low)
    assert (together.low, together.high) == bootstrap_interval(values, clusters)


def test_perplexities_are_weighted_by_words_and_keep_their_order():
    texts = [(-30.0, 10), (-50.0, 10), (-400.0, 80), (-12.0, 8), (-90.0, 30)]

    def aggregate(items):
        return math.exp(-sum(ll for ll, _ in items) / sum(count for _, count in items))

    found = score("word_perplexity", texts, aggregate, [None] * 5)
    assert found.value == pytest.approx(math.exp(582 / 138))
    assert found.low < found.value < found.high
    assert found.values[1] == pytest.approx(math.exp(5))
    bits = score("bits_per_byte", texts, lambda items: math.log(aggregate(items)) / math.log(2), [None] * 5)
    assert (bits.low, bits.high) == pytest.approx((math.log2(found.low), math.log2(found.high)))


def test_lists_count_by_their_length():
    items = [[True], [False, False, False], [True, True], [True, False]]
    found = score("inst_level", items, lambda lists: mean([one for each in lists for one in each]), [None] * 4)
    assert found.value == 0.5
    assert found.values.tolist() == [1.0, 0.0, 1.0, 0.5]
    assert found.low < 0.5 < found.high


def test_an_aggregate_that_is_no_mean_is_drawn_again():
    generator = np.random.default_rng(1)
    pairs = [(int(a), int(a) if generator.random() < 0.8 else int(1 - a)) for a in generator.integers(0, 2, 60)]

    def f1(items):
        right = sum(a == b == 1 for a, b in items)
        return 2 * right / max(1, sum(a for a, _ in items) + sum(b for _, b in items))

    found = score("f1", pairs, f1, [None] * 60)
    assert found.value == f1(pairs)
    assert found.low < found.value < found.high
    assert 0.05 < found.high - found.low < 0.4
    assert np.isnan(found.values).all()


def test_a_mean_of_other_numbers_is_bootstrapped():
    values = [0.1, 0.4, 0.35, 0.8, 0.2, 0.6]
    found = score("rouge", values, mean, [None] * 6)
    assert found.interval == "bootstrap"
    assert (found.low, found.high) == bootstrap_interval(values, None, np.ones(6))
