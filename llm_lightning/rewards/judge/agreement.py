"""How far a judge can be trusted: measured on labelled pairs, before any of its verdicts is trained on.

Judges prefer longer responses and the one that is shown first (arXiv:2306.05685), and a policy finds that out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from llm_lightning.errors import UserError
from llm_lightning.measuring.statistics import bootstrap_interval, paired_shares, wilson_interval
from llm_lightning.rewards.judge.labelled import LabelledPair


@dataclass
class Agreement:
    """What a judge is compared with.

    Args:
        path: labelled pairs, .jsonl with `prompt`, `chosen` and `rejected`.
        least: share of the pairs in which the judge has to prefer the chosen response; below, no verdict is given. A
            pair in which it prefers neither counts as half, so that a coin has 0.5.
        num_pairs: how many are asked about, at most, the first ones of the file. With 200 the interval reaches some
            seven points to each side.
    """

    path: str
    least: float = 0.6
    num_pairs: int = 200

    def check(self) -> None:
        """Raise `UserError` for values that cannot work."""
        if not 0 <= self.least <= 1:
            raise UserError(f"Judge.agreement.least={self.least} must lie between 0 and 1.")
        if self.num_pairs < 1:
            raise UserError(f"Judge.agreement.num_pairs={self.num_pairs} must be at least 1.")


class Bias(NamedTuple):
    """A difference that is 0 for an unbiased judge, and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves 0 out."""
        return not self.low <= 0 <= self.high

    def __str__(self) -> str:
        return f"{self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f}){', biased' if self.is_sure else ''}"


class Measured(NamedTuple):
    """A judge on labelled pairs.

    Args:
        num_pairs: how many.
        accuracy: share in which it prefers the chosen response, half a pair where it prefers neither.
        low, high: the accuracy's 95 % interval.
        unreadable: share of its replies without a verdict; they prefer neither.
        length: how much more often it is right where the longer response is the better one than where the shorter is.
            1 for a judge that always takes the longer, whatever share of the pairs that makes right. None where only
            the one or the other kind is among the pairs.
        position: share of the pairs in which it takes what is shown first in both orders, less that in which it takes
            what is shown second. None for a judge of single responses.
    """

    num_pairs: int
    accuracy: float
    low: float
    high: float
    unreadable: float
    length: Bias | None
    position: Bias | None

    def __str__(self) -> str:
        said = [
            f"right in {self.accuracy:.1%} of {self.num_pairs} labelled pairs ({self.low:.1%} to {self.high:.1%})",
            f"{self.unreadable:.1%} of its replies without a verdict",
            f"towards the longer response {self.length or 'unknown'}",
        ]
        if self.position is not None:
            said.append(f"towards the response shown first {self.position}")
        return "; ".join(said)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict() | {
            name: bias and bias._asdict() | {"is_sure": bias.is_sure}
            for name, bias in (("length", self.length), ("position", self.position))
        }


def measure(
    pairs: Sequence[LabelledPair],
    preferences: Sequence[float],
    unreadable: float,
    first_shown: Sequence[tuple[float | None, float | None]] | None,
) -> Measured:
    """What a judge's preferences say of it.

    Args:
        pairs: that it was asked about.
        preferences: of each pair 1 where it prefers the chosen response, 0 where the rejected, 0.5 where neither.
        unreadable: share of its replies without a verdict.
        first_shown: of each pair, for both orders, whether the response shown first was preferred (1, 0, 0.5 or
            None); None where responses are judged one at a time.
    """
    values = np.asarray(preferences, float)
    prompts = [str(pair.prompt) for pair in pairs]
    low, high = wilson_interval(float(values.sum()), len(values))
    if len(set(prompts)) < len(prompts):  # pairs that share a prompt are not independent
        low, high = bootstrap_interval(values, prompts)
    position = None
    if first_shown is not None:
        shown = np.asarray(first_shown, float)
        position = Bias(*paired_shares((shown == 0).all(1), (shown == 1).all(1))[:3])
    return Measured(len(pairs), float(values.mean()), low, high, unreadable, _length_bias(pairs, values), position)


def _length_bias(pairs: Sequence[LabelledPair], values: np.ndarray) -> Bias | None:
    """By Newcombe's interval (1998) for the difference of two independent shares."""
    more = np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs])
    longer, shorter = values[more > 0], values[more < 0]
    if not len(longer) or not len(shorter):
        return None
    (a, a_low, a_high), (b, b_low, b_high) = (
        (float(each.mean()), *wilson_interval(float(each.sum()), len(each))) for each in (longer, shorter)
    )
    return Bias(a - b, a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low))
