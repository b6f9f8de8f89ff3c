"""Records that ask what a seed asks."""

from collections.abc import Iterator

import numpy as np

from datamodules.filters.extra import needs
from datamodules.records.words import Coder
from datamodules.synthetic.candidate import Candidate, Message
from datamodules.synthetic.filters.filter import Context, Filter, Scores, Threshold
from datamodules.synthetic.filters.nearest import Nearest


class SeedSimilarity(Filter):
    """Drops records whose prompt is nearly that of a seed.

    The score is ROUGE-L between the record's prompt and the nearest seed's, as in self-instruct (Wang et al., 2023).
    Not all seeds are compared, which would take minutes for 100,000 records and 10,000 seeds, but those that share the
    most of the rarer pairs of words.

    Args:
        threshold: by default, drop what is above self-instruct's 0.7.

    Raises:
        DataError: rapidfuzz is not installed.
    """

    name = "seed_similarity"
    too_high = "nearly a seed's prompt"

    def __init__(self, threshold: Threshold = Threshold(max=0.7)) -> None:  # noqa: B008
        super().__init__(threshold)
        needs("rapidfuzz", "SeedSimilarity")

    def scores(self, batches: Iterator[list[Candidate]], context: Context) -> Iterator[Scores]:
        """One number a record: how near the nearest seed is."""
        coder = Coder()
        nearest = Nearest(coder.learn(prompt_of(seed)) for seed in context.seeds())
        for batch in batches:
            yield Scores(np.array([nearest.rouge_l(coder.code(each.prompt)) for each in batch], np.float32))


def prompt_of(messages: list[Message]) -> str:
    """What the user says, all turns."""
    return "\n".join(message["content"] for message in messages if message["role"] == "user")
