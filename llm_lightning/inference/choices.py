"""Which of several samples is the answer."""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence

from llm_lightning.errors import UserError
from llm_lightning.inference.readers import AnswerReader


class Choice(ABC):
    """Takes one of several samples."""

    @property
    def needs_rewards(self) -> bool:
        """Whether there is nothing to choose by without a reward."""
        return False

    @abstractmethod
    def choose(self, texts: Sequence[str], rewards: Sequence[float]) -> int:
        """The place of the sample that is taken.

        Args:
            texts: the samples of one prompt, at least one.
            rewards: of each; all 0 where no reward is named.
        """


class FirstSample(Choice):
    """The first one, whatever the others are: what a single sample would have been."""

    def choose(self, texts: Sequence[str], rewards: Sequence[float]) -> int:
        """See `Choice`."""
        return 0


class BestOfN(Choice):
    """The sample with the highest reward, the first of equals."""

    @property
    def needs_rewards(self) -> bool:
        """Always."""
        return True

    def choose(self, texts: Sequence[str], rewards: Sequence[float]) -> int:
        """See `Choice`."""
        return max(range(len(rewards)), key=lambda place: rewards[place])


class MajorityVote(Choice):
    """What most samples arrive at (self-consistency, arXiv:2203.11171), the first of equals.

    Samples that arrive at nothing have no vote; where none has one, the first sample is taken.

    Args:
        answer: reads what a sample arrives at.
        weights: what a vote counts. `none`: one. `rewards`: the sample's reward, which has to be at least 0. `odds`:
            e to the power of its reward, for a reward model, whose scores are log-odds. Weighted votes are also called
            weighted best-of-n. The most rewarded sample with the answer is taken.
    """

    def __init__(self, answer: AnswerReader, weights: str = "none") -> None:
        if weights not in ("none", "rewards", "odds"):
            raise UserError(f"MajorityVote.weights={weights!r}: give none, rewards or odds.")
        self.answer, self.weights = answer, weights

    @property
    def needs_rewards(self) -> bool:
        """Whether votes are weighted."""
        return self.weights != "none"

    def choose(self, texts: Sequence[str], rewards: Sequence[float]) -> int:
        """See `Choice`.

        Raises:
            UserError: a reward below 0 is to be a weight.
        """
        votes: dict[str, float] = defaultdict(float)
        voters: dict[str, list[int]] = defaultdict(list)
        for place, (text, weight) in enumerate(zip(texts, self._weights(rewards), strict=True)):
            if (answer := self.answer(text)) is not None:
                votes[answer] += weight
                voters[answer].append(place)
        if not votes:
            return 0
        return max(voters[max(votes, key=votes.__getitem__)], key=lambda place: rewards[place])

    def _weights(self, rewards: Sequence[float]) -> list[float]:
        if self.weights == "none":
            return [1.0] * len(rewards)
        if self.weights == "odds":
            return [math.exp(reward - max(rewards)) for reward in rewards]
        if min(rewards) < 0:
            raise UserError(
                f"MajorityVote.weights=rewards: a sample has the reward {min(rewards):g}, and a vote cannot count less "
                "than nothing: take weights=odds, which is for reward models."
            )
        return list(rewards)
