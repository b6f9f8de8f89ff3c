"""Estimates from n samples against all subsets of k of them."""

import itertools
import random
import statistics
from collections import Counter

import pytest

from llm_lightning.inference.estimators import best_at_k, choice_at_k, majority_at_k, pass_at_k


def subsets(count, k):
    return list(itertools.combinations(range(count), k))


@pytest.mark.parametrize("num_right", [0, 1, 3, 6])
@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_pass_at_k(num_right, k):
    right = [place < num_right for place in range(6)]
    expected = statistics.fmean(any(right[place] for place in chosen) for chosen in subsets(6, k))
    assert pass_at_k(6, num_right, k) == pytest.approx(expected, abs=1e-12)


def taken_by_majority(answers, right, chosen):
    votes = Counter(answers[place] for place in chosen if answers[place] is not None)
    if not votes:
        return statistics.fmean(right[place] for place in range(len(right)) if answers[place] is None)
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    return statistics.fmean(
        statistics.fmean(r for a, r in zip(answers, right, strict=True) if a == winner) for winner in winners
    )


@pytest.mark.parametrize("seed", range(12))
def test_majority_at_k(seed):
    g = random.Random(seed)
    answers = [g.choice(["7", "8", "9", None]) for _ in range(8)]
    right = [float(answer == "7") for answer in answers]
    found = majority_at_k(answers, right)
    for k in range(1, 9):
        expected = statistics.fmean(taken_by_majority(answers, right, chosen) for chosen in subsets(8, k))
        assert found[k - 1] == pytest.approx(expected, abs=1e-12), k


@pytest.mark.parametrize("answers", [["a"] * 5, [None] * 5, ["a", "b", "c", "d", "e"], ["a", "a", "b", "b", None]])
def test_majority_of_extreme_votes(answers):
    right = [float(answer == "a") for answer in answers]
    for k, found in enumerate(majority_at_k(answers, right), 1):
        expected = statistics.fmean(taken_by_majority(answers, right, chosen) for chosen in subsets(5, k))
        assert found == pytest.approx(expected, abs=1e-12)


def test_majority_of_64_samples_stays_a_probability():
    g = random.Random(0)
    answers = [g.choice(["7", "8", "9", None]) for _ in range(64)]
    found = majority_at_k(answers, [float(answer == "7") for answer in answers])
    assert all(-1e-9 <= each <= 1 + 1e-9 for each in found)
    assert found[0] == pytest.approx(answers.count("7") / 64)


@pytest.mark.parametrize("seed", range(8))
def test_best_at_k(seed):
    g = random.Random(seed)
    rewards = [g.choice([-1.0, 0.5, 0.5, 2.0]) for _ in range(7)]
    right = [float(g.random() < 0.4) for _ in range(7)]
    for k in range(1, 8):
        taken = []
        for chosen in subsets(7, k):
            best = max(rewards[place] for place in chosen)
            taken.append(statistics.fmean(right[place] for place in chosen if rewards[place] == best))
        # Among equals in a subset, over all subsets, each of the equals is as likely.
        assert best_at_k(rewards, right, k) == pytest.approx(statistics.fmean(taken), abs=1e-12)


def test_any_choice_is_estimated_by_draws():
    rewards, right = [0.1, 0.9, 0.4, 0.7, 0.2], [0.0, 1.0, 0.0, 1.0, 1.0]

    def best(places):
        return max(range(len(places)), key=lambda place: rewards[places[place]])

    assert choice_at_k(best, right, 5) == best_at_k(rewards, right, 5) == 1.0
    for k in (1, 3):
        assert choice_at_k(best, right, k, seed=3) == pytest.approx(best_at_k(rewards, right, k), abs=0.1)
