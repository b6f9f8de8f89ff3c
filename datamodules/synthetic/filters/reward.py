"""Responses that a reward finds bad."""

from collections.abc import Iterator

import numpy as np

from datamodules.errors import DataError
from datamodules.synthetic.candidate import Candidate, Scorer
from datamodules.synthetic.filters.filter import Context, Filter, Scores, Threshold


class Reward(Filter):
    """Keeps the responses that a reward finds best.

    Args:
        scorer: called with prompts (each the messages before the response), responses and an empty dictionary, returns
            a number for each response: what PPO takes as a reward, a reward model's folder included.
        threshold: by default the better half.
    """

    name = "reward"

    def __init__(self, scorer: Scorer, threshold: Threshold = Threshold(min=0.5, by="quantile")) -> None:  # noqa: B008
        super().__init__(threshold)
        self.scorer = scorer

    def scores(self, batches: Iterator[list[Candidate]], context: Context) -> Iterator[Scores]:
        """One number a record: the reward of its response."""
        for batch in batches:
            responses = [candidate.answer for candidate in batch]
            values = np.array(self.scorer([candidate.messages[:-1] for candidate in batch], responses, {}), np.float32)
            if values.shape != (len(batch),):
                raise DataError(f"filters: Reward.scorer returned {values.size} numbers for {len(batch)} responses")
            yield Scores(values)
