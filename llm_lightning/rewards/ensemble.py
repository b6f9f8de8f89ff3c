"""Several rewards as one, less what they disagree about."""

import statistics

from llm_lightning.errors import UserError
from llm_lightning.rewards.scoring import Columns, Prompt, RewardFunction, Scores, score_alone


class RewardEnsemble:
    """The mean of several rewards less their standard deviation.

    A policy finds what one reward model is wrong about, and writes that. Where several, trained from other seeds or on
    other parts of the data, are wrong they seldom agree (arXiv:2310.02743, which takes the variance: the standard
    deviation has the unit of the rewards).

    Args:
        members: what is averaged, at least two: reward models, mostly. Their scores have to mean the same: set `scale`
            and `offset` of models whose scores lie elsewhere, since that would count as disagreement.
        k: standard deviations (of these members, not an estimate for others) to take off. 0 is the mean; 1 with two
            members is the worse of both.

    Its mean, disagreement and worst member are logged as `reward/NAME/mean`, `reward/NAME/std` and `reward/NAME/min`.
    """

    parts = ("mean", "std", "min")

    def __init__(self, members: list[RewardFunction], k: float = 1.0) -> None:
        self.members = members
        self.k = k

    def check(self) -> None:
        """Raise `UserError` for settings that make no ensemble."""
        if len(self.members) < 2:
            raise UserError(
                f"RewardEnsemble.members names {len(self.members)} reward(s); an ensemble has at least two."
            )
        if not self.k >= 0:
            raise UserError(f"RewardEnsemble.k={self.k} must be at least 0: disagreement is taken off, not paid for.")

    def __call__(self, prompts: list[Prompt], completions: list[str], columns: Columns) -> Scores:
        """See `RewardFunction`."""
        given = [
            score_alone(f"member {number}", member, prompts, completions, columns)
            for number, member in enumerate(self.members)
        ]
        each = list(zip(*given, strict=True))
        mean, std = ([of(values) for values in each] for of in (statistics.fmean, statistics.pstdev))
        values = [m - self.k * s for m, s in zip(mean, std, strict=True)]
        return Scores(values, {"mean": mean, "std": std, "min": [min(values) for values in each]})
