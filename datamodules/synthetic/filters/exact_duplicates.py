"""Records that say the same as an earlier one."""

from collections.abc import Iterator

import numpy as np

from datamodules.storage.near_duplicates import wording_hash
from datamodules.synthetic.candidate import Candidate
from datamodules.synthetic.filters.filter import Context, Filter, Scores, Threshold


class ExactDuplicates(Filter):
    """Keeps the first of the records that say the same, whatever their case, punctuation and spaces.

    The score is 1 where an earlier record said it, and 0 else.
    """

    name = "exact_duplicates"
    too_high = "said before"

    def __init__(self) -> None:
        super().__init__(Threshold(max=0))

    def scores(self, batches: Iterator[list[Candidate]], context: Context) -> Iterator[Scores]:
        """One number a record: whether it was there before."""
        seen: set[int] = set()
        for batch in batches:
            repeated = []
            for candidate in batch:
                digest = wording_hash(candidate.text)
                repeated.append(digest in seen)
                seen.add(digest)
            yield Scores(np.array(repeated, np.float32))
