"""Pairs as the model will see them, and what the whole set looks like."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from datamodules.serving.pairs import Pair, Pairs
from datamodules.serving.preview import CLOSE, GREEN, OPEN, PLAIN, has_colours

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RED = "\033[31m"
OPEN_REJECTED, CLOSE_REJECTED = "⟪", "⟫"


def preview_pairs(pairs: Pairs, tokenizer: PreTrainedTokenizerFast, num_records: int) -> Iterator[str]:
    """Lines to print: the first pairs, then the statistics of all."""
    marks = ((GREEN, PLAIN), (RED, PLAIN)) if has_colours() else ((OPEN, CLOSE), (OPEN_REJECTED, CLOSE_REJECTED))
    for number in range(min(num_records, len(pairs))):
        yield from _in_words(pairs[number], number + 1, tokenizer, marks)
    (begin, end), (begin_rejected, end_rejected) = marks
    legend = f"{begin}chosen{end}, {begin_rejected}rejected{end_rejected}"
    yield f"--- all of the training data (behind what both responses begin with: {legend})"
    yield from pair_statistics(pairs)


def _in_words(pair: Pair, number: int, tokenizer: PreTrainedTokenizerFast, marks: tuple) -> Iterator[str]:
    tie = ", a tie" if pair.details["is_tie"] else ""
    margin = f", margin {pair.details['margin']:g}" if pair.details["margin"] else ""
    yield (
        f"--- pair {number}: {len(pair.prompt):,} tokens in common, {len(pair.chosen):,} chosen,"
        f" {len(pair.rejected):,} rejected{margin}{tie}"
    )
    yield str(tokenizer.decode(pair.prompt, skip_special_tokens=False))
    for (begin, end), ids in zip(marks, (pair.chosen, pair.rejected), strict=True):
        yield f"{begin}{tokenizer.decode(ids, skip_special_tokens=False)}{end}"


def pair_statistics(pairs: Pairs) -> list[str]:
    """Lengths, what is shared, ties, and exact copies; every token is read once, and none is held."""
    counts = np.zeros((len(pairs), 3), np.int64)
    hashes = np.empty(len(pairs), np.uint64)
    num_with = {"is_tie": 0, "margin": 0, "chosen_score": 0}
    for number in range(len(pairs)):
        pair = pairs[number]
        counts[number] = len(pair.prompt), len(pair.chosen), len(pair.rejected)
        data = b"".join(ids.tobytes() for ids in pair[:3])
        hashes[number] = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        num_with["is_tie"] += bool(pair.details["is_tie"])
        num_with["margin"] += bool(pair.details["margin"])
        num_with["chosen_score"] += not np.isnan(pair.details["chosen_score"])
    prompt, chosen, rejected = counts.T
    written_out = counts.sum() + prompt.sum()
    return [
        f"pairs       {len(pairs):,}, {len(pairs) - len(np.unique(hashes)):,} of them copies of another,"
        f" {num_with['is_tie']:,} ties, {num_with['margin']:,} with a margin, {num_with['chosen_score']:,} with scores",
        f"tokens      {counts.sum():,}; {prompt.sum() / max(1, written_out):.1%} of all is a prompt read once for both",
        f"responses   chosen {_median(chosen)} and rejected {_median(rejected)} tokens (medians);"
        f" the chosen one is longer in {(chosen > rejected).mean() if len(pairs) else 0:.1%}",
    ]


def _median(lengths: np.ndarray) -> str:
    return f"{np.median(lengths) if len(lengths) else 0:,.0f}"
