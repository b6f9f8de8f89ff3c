"""The right docstring for a question about Python's library against a wrong one: preferences with no download."""

import hashlib
from collections.abc import Iterator

from datamodules.corpora import python_pairs

REACH = 40
"""The wrong answer is taken from so many places further on at the most: modules lie side by side, so that it is often
about the same module, and seldom told by its subject alone."""


def records() -> Iterator[dict[str, str]]:
    """{prompt, chosen, rejected} for each question of `python_pairs`, in its order."""
    pairs = list(python_pairs.records())
    for number, pair in enumerate(pairs):
        digest = hashlib.blake2b(pair["prompt"].encode(), digest_size=4).digest()
        other = pairs[(number + 1 + int.from_bytes(digest) % REACH) % len(pairs)]
        yield {"prompt": pair["prompt"], "chosen": pair["completion"], "rejected": other["completion"]}
