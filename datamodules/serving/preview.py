"""Records as the model will see them, and what the whole set looks like."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from datamodules.serving.collate import Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GREEN, PLAIN = "\033[32m", "\033[0m"
OPEN, CLOSE = "⟦", "⟧"  # where a terminal has no colours
LONGEST_COUNTED = 1 << 20  # tokens; longer documents count as that long in the statistics


class SomeDocuments(Protocol):
    """Documents by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Piece: ...


def has_colours() -> bool:
    """Whether standard output shows colours (see no-color.org and force-color.org)."""
    if "NO_COLOR" in os.environ:
        return False
    return "FORCE_COLOR" in os.environ or sys.stdout.isatty()


def marked(document: Piece, tokenizer: PreTrainedTokenizerFast, colours: bool) -> str:
    """A document's text, special tokens and all, with what is in the loss in green, or else in ⟦brackets⟧."""
    begin, end = (GREEN, PLAIN) if colours else (OPEN, CLOSE)
    trained = np.ones(len(document.ids), bool) if document.trained is None else document.trained
    changes = np.flatnonzero(np.diff(trained)) + 1
    parts: list[str] = []
    for ids, mask in zip(np.split(document.ids, changes), np.split(trained, changes), strict=True):
        text = str(tokenizer.decode(ids, skip_special_tokens=False))
        parts.append(f"{begin}{text}{end}" if mask[0] else text)
    return "".join(parts)


def statistics_in_words(documents: SomeDocuments) -> list[str]:
    """Lengths, the trained share, and exact duplicates; every token is read once, and none is held."""
    lengths = np.zeros(LONGEST_COUNTED + 1, np.int64)
    hashes = np.empty(len(documents), np.uint64)
    num_tokens = num_trained = 0
    for number, document in enumerate(_all(documents)):
        lengths[min(len(document.ids), LONGEST_COUNTED)] += 1
        hashes[number] = _hash(document.ids)
        num_tokens += len(document.ids)
        num_trained += len(document.ids) - 1 if document.trained is None else int(document.trained[1:].sum())
    shares = {"shortest": 0.0, "median": 0.5, "95 %": 0.95, "longest": 1.0}
    ends = np.cumsum(lengths)
    places = {name: int(np.searchsorted(ends, max(1, share * len(documents)))) for name, share in shares.items()}
    return [
        f"documents   {len(documents):,}, {len(documents) - len(np.unique(hashes)):,} of them copies of another",
        f"tokens      {num_tokens:,}, {num_trained:,} of them in the loss ({num_trained / max(1, num_tokens):.1%})",
        "lengths     " + ", ".join(f"{name} {length:,}" for name, length in places.items()),
    ]


def _all(documents: SomeDocuments) -> Iterable[Piece]:
    return (documents[number] for number in range(len(documents)))


def _hash(ids: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little")


def preview(documents: SomeDocuments, tokenizer: PreTrainedTokenizerFast, num_records: int) -> Iterator[str]:
    """Lines to print: the first documents, then the statistics of all."""
    colours = has_colours()
    for number in range(min(num_records, len(documents))):
        document = documents[number]
        yield f"--- document {number + 1}: {len(document.ids):,} tokens"
        yield marked(document, tokenizer, colours)
    legend = f"{GREEN}green{PLAIN}" if colours else f"{OPEN}in brackets{CLOSE}"
    yield f"--- all of the training data (in the loss: {legend})"
    yield from statistics_in_words(documents)
