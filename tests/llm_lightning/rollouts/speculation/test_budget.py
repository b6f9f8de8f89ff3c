"""Which tokens are guessed, against all other choices."""

import itertools

import numpy as np
import pytest

from llm_lightning.rollouts.speculation.budget import LEAST_GAIN, MOST_SURE, Rates, allot


def cost(num_tokens):
    return 10.0 + np.asarray(num_tokens)


@pytest.mark.parametrize("rates", [[0.9, 0.3, 0.6], [0.1, 0.05, 0.0], [0.98, 0.98, 0.98], [0.5, 0.9, 0.2]])
def test_no_other_choice_writes_more_for_its_cost(rates):
    limits = [3, 4, 2]

    def speed(counts):
        written = sum(sum(rate**j for j in range(count + 1)) for rate, count in zip(rates, counts, strict=True))
        return written / cost(3 + sum(counts))

    best = max(itertools.product(*(range(limit + 1) for limit in limits)), key=speed)
    found = allot(rates, limits, 3, cost)
    if speed(best) < LEAST_GAIN * speed((0, 0, 0)):
        assert not found.any()
    else:
        assert speed(found) == pytest.approx(speed(best))
        assert (found <= limits).all()


def test_a_costly_draft_has_to_be_right_more_often():
    assert allot([0.6] * 4, [5] * 4, 4, cost).sum() > allot([0.6] * 4, [5] * 4, 4, cost, 0.2).sum() > 0
    assert not allot([0.6] * 4, [5] * 4, 4, cost, 0.9).any()


def test_nothing_can_be_guessed():
    assert allot([0.9, 0.9], [0, 0], 2, cost).tolist() == [0, 0]
    assert allot([], [], 0, cost).tolist() == []


def test_rates_follow_what_is_seen():
    rates = Rates(2, 0.5)
    one, other = rates.own(), rates.own()
    for _ in range(20):
        rates.add(one, 1, 4, False)
        rates.add(other, 1, 0, True)
    assert rates.of(one, 1) > 0.85 and rates.of(other, 1) < 0.15
    assert rates.of(one, 0) == rates.of(rates.own(), 0) == 0.5
    for _ in range(30):
        rates.add(one, 1, 0, True)
    assert rates.of(one, 1) < 0.15
    for _ in range(1000):
        rates.add(one, 1, 10, False)
    assert rates.of(one, 1) == MOST_SURE
