"""Prompts that resemble each other, found without comparing each with each.

A prompt's signature is made of bands: two texts that share most of their pieces very probably agree in a band, and two
that share few hardly ever do (Broder, "On the resemblance and containment of documents", 1997, with the banding of
Leskovec et al., "Mining of Massive Datasets", chapter 3). So near duplicates are found by looking for equal numbers.
"""

import re
from collections.abc import Callable

import numpy as np

from datamodules.records.words import words_of
from datamodules.storage.hashing import mix, text_hash

NUM_BANDS, ROWS = 20, 16
"""Found are, of texts that have 0.95 of their pieces in common, all; of 0.9, 98 %; of 0.8, 43 %; of 0.7, 6 %; of 0.5, 3
in 10,000. Questions of one pattern about different things often have half of their pieces in common."""
SKETCH = 256
"""Of a longer text's pieces so many are looked at: those whose hashes are the smallest."""
PIECE = 5  # bytes
HASHES_AT_ONCE = 1 << 12  # which stay in a core's cache under some hundred permutations
KEYS = np.arange(NUM_BANDS * ROWS, dtype=np.uint64) << np.uint64(32)
WORDS = re.compile(r"[\W_]+")


def normalized(text: str) -> str:
    """Words in lower case with single spaces: what is left where only spelling and layout differ."""
    return WORDS.sub(" ", text.lower()).strip()


def wording_hash(text: str) -> int:
    """64 bits that are equal where only case, punctuation and layout differ."""
    # Of a text without letters, as "2 + 2" or "!?", its signs are all it says.
    return text_hash((" ".join(words_of(text)) or text).encode())


def pieces(text: str) -> np.ndarray:
    """(P,) uint64, hashes of all runs of five bytes in the normalized text."""
    data = np.frombuffer(normalized(text).encode().ljust(PIECE), np.uint8).astype(np.uint64)
    runs = np.zeros(len(data) - PIECE + 1, np.uint64)
    for place in range(PIECE):
        runs |= data[place : place + len(runs)] << np.uint64(8 * place)
    return mix(runs, np.uint64(0))


def signature(text: str) -> np.ndarray:
    """(NUM_BANDS,) uint64; texts that resemble each other probably agree in one of them."""
    sketch = np.unique(pieces(text))[:SKETCH]
    smallest = mix(sketch[None], KEYS[:, None]).min(1)
    bands = np.zeros(NUM_BANDS, np.uint64)
    for row in smallest.reshape(NUM_BANDS, ROWS).T:
        bands = mix(bands ^ row, np.uint64(0))
    return bands


def minima(hashes: np.ndarray, count: int) -> np.ndarray:
    """The smallest of some hashes under so many permutations: two sets agree in about as large a share of these as is
    common to both (their Jaccard similarity).

    A permutation is `a * hash + b` modulo 2^32 with an odd `a`, which is quick to compute and loses nothing; the hashes
    have to be mixed already, as `pieces` are. `signature` permutes by mixing again, as what is in the cache does.

    Args:
        hashes: (P,) uint64, of which the upper halves count.
        count: of permutations.

    Returns:
        (count,) uint32.
    """
    constants = mix(np.arange(2 * count, dtype=np.uint64), np.uint64(0)).astype(np.uint32)
    factors, offsets = constants[:count, None] | np.uint32(1), constants[count:, None]
    upper = (hashes >> np.uint64(32)).astype(np.uint32)
    smallest = np.full(count, np.uint32(0xFFFFFFFF))
    for start in range(0, len(upper), HASHES_AT_ONCE):
        permuted = upper[start : start + HASHES_AT_ONCE] * factors
        permuted += offsets
        np.minimum(smallest, permuted.min(1), out=smallest)
    return smallest


def resembling(read_band: Callable[[int], np.ndarray], held_out: np.ndarray) -> np.ndarray:
    """Of what is held out, what resembles the rest, directly or by way of others that do.

    Each band is sorted once a round, so that the work grows as N log N; one is in memory at a time.

    Args:
        read_band: from the number of a band to what it says of all, (N,) uint64.
        held_out: (N,) bool.

    Returns:
        (N,) bool.
    """
    left = held_out.copy()
    while True:
        near = np.zeros(len(left), bool)
        for number in range(NUM_BANDS):
            band = read_band(number)
            near[left] |= np.isin(band[left], band[~left])
        if not near.any():
            return held_out & ~left
        left &= ~near
