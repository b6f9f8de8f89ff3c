"""Records that resemble an earlier one."""

from collections.abc import Iterator
from tempfile import TemporaryFile

import numpy as np

from datamodules.storage.near_duplicates import minima, pieces
from datamodules.synthetic.candidate import Candidate
from datamodules.synthetic.filters.filter import Context, Filter, Scores, Threshold

NUM_BANDS, ROWS = 25, 5
"""Two records are compared where they agree in a band: of those that have 0.7 of their pieces in common, 99 %; of 0.5,
55 %; of 0.3, 6 %."""
NUM_PERM = NUM_BANDS * ROWS
# Of a hash the signature has one byte: of two different ones every 256th looks the same, which `_compare` allows for.
ROW = np.dtype([("bands", np.uint32, NUM_BANDS), ("signature", np.uint8, NUM_PERM)])
PAIRS_AT_ONCE = 1 << 16


class NearDuplicates(Filter):
    """Drops records that resemble an earlier one, whether that one stays or not.

    The score estimates which share of their pieces (runs of five bytes) a record has in common with the most similar of
    the earlier records that it was compared with: their Jaccard similarity, by MinHash with a standard error of at most
    0.045. Which records are compared is found by banding and sorting (Leskovec et al., "Mining of Massive Datasets",
    chapter 3): for each band with the first and the last earlier record that agrees in it. A record is 225 bytes in a
    file.

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
                rows = np.zeros(len(batch), ROW)
                hashes = np.stack([minima(pieces(candidate.text), NUM_PERM) for candidate in batch])
                rows["bands"], rows["signature"] = _bands(hashes), hashes
                file.write(rows.tobytes())
            file.flush()
            if file.tell():
                yield Scores(_most_similar(np.memmap(file, ROW, "r")))


def _bands(hashes: np.ndarray) -> np.ndarray:
    """(N, NUM_BANDS) uint32 from (N, NUM_PERM); chance agreements are harmless, since pairs are compared."""
    bands = np.zeros((len(hashes), NUM_BANDS), np.uint32)
    for row in range(ROWS):
        bands = (bands ^ hashes[:, row::ROWS]) * np.uint32(0x9E3779B1)
        bands ^= bands >> np.uint32(15)
    return bands


def _most_similar(rows: np.ndarray) -> np.ndarray:
    """(N,) float32, how similar each record is to an earlier one; 0 where it was compared with none."""
    best = np.zeros(len(rows), np.float32)
    for number in range(NUM_BANDS):
        column = rows["bands"][:, number]
        order = np.argsort(column, kind="stable")
        follows = np.flatnonzero(column[order][1:] == column[order][:-1]) + 1  # places whose predecessor agrees
        starts = np.ones(len(order), bool)
        starts[follows] = False
        first = np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))
        for earlier in (first[follows], follows - 1):
            _compare(order[follows], order[earlier], rows["signature"], best)
    return best


def _compare(later: np.ndarray, earlier: np.ndarray, signatures: np.ndarray, best: np.ndarray) -> None:
    """Raises `best` of the later ones to their similarity to the earlier ones."""
    for i in range(0, len(later), PAIRS_AT_ONCE):
        rows, others = later[i : i + PAIRS_AT_ONCE], earlier[i : i + PAIRS_AT_ONCE]
        agreeing = (signatures[rows] == signatures[others]).mean(1, dtype=np.float32)
        best[rows] = np.maximum(best[rows], np.maximum(0, (agreeing - 1 / 256) / (1 - 1 / 256)))
