"""Records that resemble an earlier one."""

from collections.abc import Iterator
from tempfile import TemporaryFile

import numpy as np

from datamodules.storage.near_duplicates import pieces
from datamodules.storage.similarity import ROW, most_similar, signatures
from datamodules.synthetic.candidate import Candidate
from datamodules.synthetic.filters.filter import Context, Filter, Scores, Threshold


class NearDuplicates(Filter):
    """Drops records that resemble an earlier one, whether that one stays or not.

    The score estimates which share of their pieces (runs of five bytes) a record has in common with the most similar of
    the earlier records that it was compared with: their Jaccard similarity, by MinHash with a standard error of at most
    0.045. Which records are compared is found by banding and sorting; see `storage.similarity`. A record is 225 bytes
    in a file.

    Args:
        threshold: by default, drop what has more than 0.7 in common.
    """

    name = "near_duplicates"
    too_high = "resembles an earlier one"
    needs_all = True

    def __init__(self, threshold: Threshold = Threshold(max=0.7)) -> None:  # noqa: B008
        super().__init__(threshold)

    def scores(self, batches: Iterator[list[Candidate]], context: Context) -> Iterator[Scores]:
        """One number a record: the similarity to the most similar earlier one."""
        with TemporaryFile(dir=context.folder) as file:
            for batch in batches:
                file.write(signatures([pieces(candidate.text) for candidate in batch]).tobytes())
            file.flush()
            if file.tell():
                rows = np.memmap(file, ROW, "r")
                bands, kept = rows["bands"], rows["signature"]
                yield Scores(most_similar(len(rows), lambda number: bands[:, number], kept.__getitem__).similarity)
