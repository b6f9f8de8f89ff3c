"""Which of many texts resemble an earlier one, from a short signature of each.

MinHash with banding and sorting (Leskovec et al., "Mining of Massive Datasets", chapter 3): texts are compared where
they agree in a band, for each band with the first and with the last earlier one that does.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from datamodules.storage.near_duplicates import minima

NUM_BANDS, ROWS = 25, 5
"""Two texts are compared where they agree in a band: of those that have 0.7 of their pieces in common, 99 %; of 0.5,
55 %; of 0.3, 6 %."""
NUM_PERM = NUM_BANDS * ROWS
# Of a hash the signature has one byte: of two different ones every 256th looks the same, which `_agreeing` allows for.
ROW = np.dtype([("bands", np.uint32, NUM_BANDS), ("signature", np.uint8, NUM_PERM)])
PAIRS_AT_ONCE = 1 << 13


def signatures(pieces: list[np.ndarray]) -> np.ndarray:
    """(N,) `ROW` from the pieces of each text, uint64 hashes of which the upper halves count; at least one each."""
    hashes = np.stack([minima(each, NUM_PERM) for each in pieces])
    rows = np.zeros(len(hashes), ROW)
    rows["bands"], rows["signature"] = _bands(hashes), hashes
    return rows


def _bands(hashes: np.ndarray) -> np.ndarray:
    """(N, NUM_BANDS) uint32 from (N, NUM_PERM); chance agreements are harmless, since pairs are compared."""
    bands = np.zeros((len(hashes), NUM_BANDS), np.uint32)
    for row in range(ROWS):
        bands = (bands ^ hashes[:, row::ROWS]) * np.uint32(0x9E3779B1)
        bands ^= bands >> np.uint32(15)
    return bands


class Nearest(NamedTuple):
    """For each of N texts the most similar of the earlier ones that it was compared with.

    Args:
        similarity: (N,) float32, an estimate of their Jaccard similarity, with a standard error of at most 0.045; 0
            where it was compared with none.
        place: (N,) int64, which one it is; -1 for none.
    """

    similarity: np.ndarray
    place: np.ndarray


def most_similar(
    count: int, read_band: Callable[[int], np.ndarray], read_signatures: Callable[[np.ndarray], np.ndarray]
) -> Nearest:
    """Compares texts by their signatures. One band is in memory at a time, and the signatures of some pairs.

    Args:
        count: N, of the texts.
        read_band: from the number of a band to what it says of all, (N,) uint32.
        read_signatures: from places, (P,), to the signatures there, (P, NUM_PERM) uint8.
    """
    nearest = Nearest(np.zeros(count, np.float32), np.full(count, -1))
    for number in range(NUM_BANDS if count else 0):
        order, follows, firsts = repeated(read_band(number))
        later = order[follows]
        for earlier in (order[firsts], order[follows - 1]):
            _compare(later, earlier, read_signatures, nearest)
    return nearest


class Repeated(NamedTuple):
    """Which of N values are equal to an earlier one.

    Args:
        order: (N,) int64, the places of the values when they are sorted; equal ones stay in their order.
        follows: (R,) int64, where in `order` a value is equal to the one before.
        firsts: (R,) int64, where in `order` the first of those equal ones is.
    """

    order: np.ndarray
    follows: np.ndarray
    firsts: np.ndarray


def repeated(values: np.ndarray) -> Repeated:
    """Finds equal values by sorting."""
    order = np.argsort(values, kind="stable")
    in_order = values[order]
    is_first = np.ones(len(values), bool)
    np.not_equal(in_order[1:], in_order[:-1], out=is_first[1:])
    begins, follows = np.flatnonzero(is_first), np.flatnonzero(~is_first)
    return Repeated(order, follows, begins[np.searchsorted(begins, follows, side="right") - 1])


def _compare(
    later: np.ndarray, earlier: np.ndarray, read_signatures: Callable[[np.ndarray], np.ndarray], nearest: Nearest
) -> None:
    """Raises what is known of the later ones to their similarity to the earlier ones, where that is higher."""
    for i in range(0, len(later), PAIRS_AT_ONCE):
        rows, others = later[i : i + PAIRS_AT_ONCE], earlier[i : i + PAIRS_AT_ONCE]
        similarity = _agreeing(read_signatures(rows), read_signatures(others))
        better = similarity > nearest.similarity[rows]
        nearest.similarity[rows[better]] = similarity[better]
        nearest.place[rows[better]] = others[better]


def _agreeing(signatures: np.ndarray, others: np.ndarray) -> np.ndarray:
    agreeing = (signatures == others).mean(1, dtype=np.float32)
    return np.maximum(0, (agreeing - 1 / 256) / (1 - 1 / 256))
