"""Pairs and single answers as the model will see them, and what the whole set looks like."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from datamodules.records.single_answers import DESIRABLE, UNDESIRABLE
from datamodules.serving.pairs import Pair, Pairs
from datamodules.serving.preview import CLOSE, GREEN, OPEN, PLAIN, has_colours

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RED = "\033[31m"
OPEN_REJECTED, CLOSE_REJECTED = "⟪", "⟫"
LABELS = (DESIRABLE, UNDESIRABLE)


def preview_pairs(pairs: Pairs, tokenizer: PreTrainedTokenizerFast, num_records: int) -> Iterator[str]:
    """Lines to print: the first pairs, then the statistics of all."""
    marks = ((GREEN, PLAIN), (RED, PLAIN)) if has_colours() else ((OPEN, CLOSE), (OPEN_REJECTED, CLOSE_REJECTED))
    for number in range(min(num_records, len(pairs))):
        yield from _in_words(pairs[number], number + 1, tokenizer, marks)
    (begin, end), (begin_rejected, end_rejected) = marks
    legend = f"{begin}chosen or desirable{end}, {begin_rejected}rejected or undesirable{end_rejected}"
    yield f"--- all of the training data (behind the prompt, or what both responses begin with: {legend})"
    yield from pair_statistics(pairs)


def _in_words(pair: Pair, number: int, tokenizer: PreTrainedTokenizerFast, marks: tuple) -> Iterator[str]:
    if pair.only is None:
        tie = ", a tie" if pair.details["is_tie"] else ""
        margin = f", margin {pair.details['margin']:g}" if pair.details["margin"] else ""
        yield (
            f"--- pair {number}: {len(pair.prompt):,} tokens in common, {len(pair.chosen):,} chosen,"
            f" {len(pair.rejected):,} rejected{margin}{tie}"
        )
    else:
        label, length = LABELS[pair.only], len(pair.sides[pair.only])
        yield f"--- answer {number}: {label}, {len(pair.prompt):,} tokens of prompt, {length:,} of the answer"
    yield str(tokenizer.decode(pair.prompt, skip_special_tokens=False))
    for (begin, end), ids in zip(marks, pair.sides, strict=True):
        if len(ids):
            yield f"{begin}{tokenizer.decode(ids, skip_special_tokens=False)}{end}"


def pair_statistics(pairs: Pairs) -> list[str]:
    """Lengths, what is shared, ties, and exact copies; every token is read once, and none is held."""
    counts = np.zeros((len(pairs), 3), np.int64)
    hashes = np.empty(len(pairs), np.uint64)
    num_with = {"is_tie": 0, "margin": 0, "chosen_score": 0}
    for number in range(len(pairs)):
        pair = pairs[number]
        counts[number] = len(pair.prompt), len(pair.chosen), len(pair.rejected)
        data = b"".join([counts[number].tobytes(), *(ids.tobytes() for ids in pair[:3])])
        hashes[number] = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        num_with["is_tie"] += bool(pair.details["is_tie"])
        num_with["margin"] += bool(pair.details["margin"])
        num_with["chosen_score"] += not np.isnan(pair.details["chosen_score"])
    is_pair = counts[:, 1:].all(axis=1)
    written_out = counts.sum() + counts[is_pair, 0].sum()
    shared = f"; {1 - counts.sum() / max(1, written_out):.1%} of all is a prompt read once for both"
    lines = {
        "pairs": f"{is_pair.sum():,}, {_num_copies(hashes[is_pair]):,} of them copies of another,"
        f" {num_with['is_tie']:,} ties, {num_with['margin']:,} with a margin, {num_with['chosen_score']:,} with scores",
        "answers": _of_singles(counts[~is_pair], hashes[~is_pair]),
        "tokens": f"{counts.sum():,}{shared if is_pair.any() else ''}",
        "responses": _of_pairs(counts[is_pair]),
    }
    absent = {"answers"} if is_pair.all() else set() if is_pair.any() else {"pairs", "responses"}
    return [f"{name:<11} {said}" for name, said in lines.items() if name not in absent]


def _of_pairs(counts: np.ndarray) -> str:
    _, chosen, rejected = counts.T
    return (
        f"chosen {_median(chosen)} and rejected {_median(rejected)} tokens (medians);"
        f" the chosen one is longer in {(chosen > rejected).mean() if len(counts) else 0:.1%}"
    )


def _of_singles(counts: np.ndarray, hashes: np.ndarray) -> str:
    lengths = counts[:, 1:].sum(axis=1)
    is_desirable = counts[:, 1] > 0
    said = (
        f"{part.sum():,} {label} ({_median(lengths[part])} tokens, median)"
        for label, part in zip(LABELS, (is_desirable, ~is_desirable), strict=True)
    )
    return f"{len(counts):,} single ones, {_num_copies(hashes):,} of them copies of another: {', '.join(said)}"


def _num_copies(hashes: np.ndarray) -> int:
    return len(hashes) - len(np.unique(hashes))


def _median(lengths: np.ndarray) -> str:
    return f"{np.median(lengths) if len(lengths) else 0:,.0f}"
