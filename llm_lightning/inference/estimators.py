"""What would have come of fewer samples: expectations over all ways to draw k of the n that there are.

To take the first k would throw away what the others say. All are exact but `choice_at_k`.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

NUM_SUBSETS = 200
"""Draws of `choice_at_k`: their error is below that of a hundred questions."""


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The probability that one of k samples is right (arXiv:2107.03374)."""
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def best_at_k(rewards: Sequence[float], right: Sequence[float], k: int) -> float:
    """The probability that of k samples the one with the highest reward is right; among equals each is as likely.

    Args:
        rewards: (n,) what the samples are chosen by.
        right: (n,) 1 for a right one, else 0.
        k: 1 to n.
    """
    expected = 0.0
    for reward in set(rewards):
        of_it = [r for r, other in zip(right, rewards, strict=True) if other == reward]
        below = sum(other < reward for other in rewards)
        wins = math.comb(below + len(of_it), k) - math.comb(below, k)
        expected += wins * sum(of_it) / len(of_it)
    return expected / math.comb(len(rewards), k)


def majority_at_k(answers: Sequence[Hashable | None], right: Sequence[float]) -> list[float]:
    """The probability that the most frequent of k answers is right (cons@k), for each k from 1 to n.

    Among equally frequent answers each is as likely to be taken. Samples without an answer have no vote; where none has
    one, any of them is taken.

    Args:
        answers: (n,) what each sample arrives at; None: nothing.
        right: (n,) 1 for a right one, else 0. Of one answer all should be the same; else their mean counts.
    """
    count = len(answers)
    groups = {answer: [r for a, r in zip(answers, right, strict=True) if a == answer] for answer in set(answers)}
    silent = groups.pop(None, [])
    expected = np.zeros(count + 1)
    if silent:
        expected += _choose(len(silent), count) * (sum(silent) / len(silent))
        expected[0] = 0
    for votes in range(1, max(map(len, groups.values()), default=0) + 1):
        expected += _won_by(votes, list(groups.values()), len(silent), count)
    return [expected[k] / math.comb(count, k) for k in range(1, count + 1)]


def _won_by(votes: int, groups: Sequence[Sequence[float]], num_silent: int, count: int) -> np.ndarray:
    """(n + 1,) in how many of the subsets of each size an answer with just so many votes wins and is right.

    Answer by answer, the number of subsets is kept by their size and by how many answers have these votes, and beside
    it the sum of these answers' shares of right samples.
    """
    most_tied = count // votes
    ways, shares = np.zeros((2, count + 1, most_tied + 1))
    ways[:, 0] = _choose(num_silent, count)
    for group in groups:
        share = sum(group) / len(group)
        next_ways, next_shares = np.zeros_like(ways), np.zeros_like(shares)
        for drawn in range(min(len(group), votes) + 1):
            factor, kept = math.comb(len(group), drawn), count + 1 - drawn
            is_tied = int(drawn == votes)
            into = (slice(drawn, None), slice(is_tied, None))
            start = (slice(0, kept), slice(0, most_tied + 1 - is_tied))
            next_ways[into] += factor * ways[start]
            next_shares[into] += factor * (shares[start] + (share * ways[start] if is_tied else 0))
        ways, shares = next_ways, next_shares
    return (shares[:, 1:] / np.arange(1, most_tied + 1)).sum(1)


def _choose(size: int, count: int) -> np.ndarray:
    """(count + 1,) ways to draw 0, 1, ... of `size` things."""
    return np.array([math.comb(size, k) for k in range(count + 1)], float)


def choice_at_k(choose: Callable[[list[int]], int], right: Sequence[float], k: int, seed: Any = 0) -> float:
    """How often `choose` takes a right one of k samples, over random draws; over all where there are few.

    Args:
        choose: from the places of k samples to the place among these of the one that is taken.
        right: (n,) 1 for a right one, else 0.
        k: 1 to n.
        seed: of the draws.
    """
    if k == len(right):
        return float(right[choose(list(range(k)))])
    g = np.random.default_rng(seed)
    taken = []
    for _ in range(NUM_SUBSETS):
        places = g.permutation(len(right))[:k].tolist()
        taken.append(right[places[choose(places)]])
    return float(np.mean(taken))
