"""Hashes of 64 bits, of texts and of numbers."""

import hashlib

import numpy as np


def text_hash(data: bytes) -> int:
    """64 bits that depend on a text alone: copies of a document fall on the same side of a split."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def mix(values: np.ndarray, key: np.uint64 | np.ndarray) -> np.ndarray:
    """A hash of 64-bit values (SplitMix64's finalizer, Steele et al. 2014)."""
    values = (values + key) * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
