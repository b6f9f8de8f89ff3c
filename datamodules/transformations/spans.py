"""Span corruption: runs of tokens are taken out of a document and told behind the marks that stand in their places.

T5's objective (Raffel et al., arXiv:1910.10683, section 3.1.4), for encoder-decoders. Which spans, `data.seed`, the
time, the row and the place in it decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from datamodules.contract import SpanTextBatch
from datamodules.errors import DataError
from datamodules.serving.collate import IGNORE, Row
from datamodules.serving.preview import SomeDocuments
from datamodules.transformations.draws import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SENTINEL = "<extra_id_{}>"
MOST_SENTINELS = 100  # of a tokenizer that is trained here, as T5's


@dataclass(frozen=True)
class SpanCorruption:
    """What is taken out.

    Args:
        density: share of a document's tokens.
        mean_length: tokens of a span in the mean.
        sentinel: how the tokenizer spells its marks, with {} for their numbers, which begin at 0.
    """

    density: float = 0.15
    mean_length: float = 3.0
    sentinel: str = SENTINEL

    def check(self) -> None:
        """Raise `DataError` for settings of which no spans can be made."""
        if not 0 < self.density < 1:
            raise DataError(f"spans: density must lie between 0 and 1, not {self.density}")
        if self.mean_length < 1:
            raise DataError(f"spans: mean_length must be at least 1, not {self.mean_length}")
        if "{}" not in self.sentinel:
            raise DataError(f"spans: sentinel must have {{}} where the number stands, unlike {self.sentinel!r}")

    def counts(self, length: int) -> tuple[int, int]:
        """How many tokens of so many are taken out, at least one and not all, and in how many spans."""
        taken = min(max(round(length * self.density), 1), length - 1)
        spans = min(max(round(taken / self.mean_length), 1), taken, length - taken + 1)
        return taken, spans


class Corrupted(NamedTuple):
    """A document without its spans, and the spans.

    Args:
        ids: (n,) what the encoder reads: the document with a sentinel in the place of each span.
        targets: (m,) what the decoder writes: each sentinel with its span, and the end of a text.
    """

    ids: np.ndarray
    targets: np.ndarray


class Spans:
    """Takes spans out of the documents of a row: a `Draw`, of rows of `Corrupted`.

    A document of fewer than two tokens has nothing to tell and is left out. Control tokens at the ends of a document
    stay.

    Args:
        settings: what is taken out.
        tokenizer: of the data.
        seq_len: tokens of a row.
        seed: names the spans.

    Raises:
        DataError: the tokenizer has no sentinels, or fewer than a row may have spans.
    """

    def __init__(
        self, settings: SpanCorruption, tokenizer: PreTrainedTokenizerFast, seq_len: int, seed: int = 0
    ) -> None:
        self.settings = settings
        self.seed = seed
        self.sentinels = np.array(sentinels_of(tokenizer, settings.sentinel), np.int64)
        self.end = tokenizer.eos_token_id
        self.control = np.array(sorted({*tokenizer.all_special_ids} - {*self.sentinels.tolist()}), np.int64)
        if not len(self.sentinels):
            raise DataError(
                f"spans: the tokenizer has no sentinels ({settings.sentinel.format(0)!r} and so on); take that of a T5,"
                " name its own by spans.sentinel, or name no tokenizer: one is trained from the text"
            )
        if (most := settings.counts(seq_len)[1]) > len(self.sentinels):
            raise DataError(
                f"spans: a row of seq_len={seq_len} tokens has up to {most} spans, and the tokenizer has"
                f" {len(self.sentinels)} sentinels; lower seq_len or spans.density, or raise spans.mean_length"
            )

    def key(self) -> list[Any]:
        """All that decides what is made of a row; JSON."""
        return ["spans", asdict(self.settings)]

    def __call__(self, row: Row, *, time: int, number: int) -> list[Corrupted]:
        """See `Draw`."""
        made = (
            self.corrupted(piece.ids.astype(np.int64), generator(self.seed, time, number, place))
            for place, piece in enumerate(row)
        )
        return [each for each in made if each is not None]

    def corrupted(self, ids: np.ndarray, random: np.random.Generator) -> Corrupted | None:
        """A document without some spans; None where it is too short to have any."""
        text = np.flatnonzero(~np.isin(ids, self.control))
        if len(text) < 2 or text[-1] - text[0] < 1:
            return None
        begin, end = int(text[0]), int(text[-1]) + 1
        taken, count = self.settings.counts(end - begin)
        # Between two spans something stays. T5's own code lets every text begin with what stays and end with a span, so
        # that of short texts always the end goes.
        stays = _parts(end - begin - taken + 2, count + 1, random)
        stays[[0, -1]] -= 1
        stops = begin + np.cumsum(stays[:-1] + (spans := _parts(taken, count, random)))
        pieces = np.split(ids, np.stack([stops - spans, stops], 1).ravel())
        marks = np.split(self.sentinels[:count], count)
        kept = [part for mark, before in zip(marks, pieces[0::2], strict=False) for part in (before, mark)]
        told = [part for mark, span in zip(marks, pieces[1::2], strict=True) for part in (mark, span)]
        return Corrupted(np.concatenate([*kept, pieces[-1]]), np.concatenate([*told, [self.end]]).astype(np.int64))

    def restored(self, corrupted: Corrupted) -> np.ndarray:
        """The document, exactly."""
        marks = np.isin(corrupted.targets, self.sentinels)
        spans = np.split(corrupted.targets[:-1], np.flatnonzero(marks[:-1]))[1:]
        parts = np.split(corrupted.ids, np.flatnonzero(np.isin(corrupted.ids, self.sentinels)))
        rest = [part for span, kept in zip(spans, parts[1:], strict=True) for part in (span[1:], kept[1:])]
        return np.concatenate([parts[0], *rest])


def pairs_in_words(
    documents: SomeDocuments, spans: Spans, tokenizer: PreTrainedTokenizerFast, num_records: int
) -> Iterator[str]:
    """Lines to print: of the first documents what the encoder reads and what the decoder writes."""
    for number in range(min(num_records, len(documents))):
        for each in spans([documents[number]], time=0, number=number):
            yield f"--- document {number + 1}: reads {len(each.ids):,} tokens, writes {len(each.targets):,}"
            yield str(tokenizer.decode(each.ids, skip_special_tokens=False))
            yield f"-> {tokenizer.decode(each.targets, skip_special_tokens=False)}"


def sentinels_of(tokenizer: PreTrainedTokenizerFast, pattern: str) -> list[int]:
    """The ids of a tokenizer's sentinels, from number 0 on to the first that it has not."""
    vocabulary, found = tokenizer.get_vocab(), list[int]()
    while (number := vocabulary.get(pattern.format(len(found)))) is not None:
        found.append(number)
    return found


def _parts(total: int, count: int, random: np.random.Generator) -> np.ndarray:
    """(count,) lengths of at least one that sum up to a total, all ways alike."""
    cuts = np.sort(random.permutation(total - 1)[: count - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


@dataclass(frozen=True)
class SpanCollator:
    """Makes a batch of rows of `Corrupted`, as wide as its widest row.

    Args:
        pad_token_id: what is padded with; never trained on.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[Sequence[Corrupted]]) -> SpanTextBatch:
        """B rows; blank ones are padding."""
        read, read_documents = _filled([[each.ids for each in row] for row in rows], self.pad_token_id)
        told, told_documents = _filled([[each.targets for each in row] for row in rows], IGNORE)
        return {
            "input_ids": read,
            "input_documents": read_documents,
            "labels": told,
            "label_documents": told_documents,
        }


def _filled(rows: list[list[np.ndarray]], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) int64 the ids, and which document of the row each is of, -1 for padding."""
    width = max(1, *(sum(map(len, row)) for row in rows))
    ids, documents = np.full((len(rows), width), padding, np.int64), np.full((len(rows), width), -1, np.int64)
    for number, row in enumerate(rows):
        if row:
            together = np.concatenate(row)
            ids[number, : len(together)] = together
            documents[number, : len(together)] = np.repeat(np.arange(len(row)), [len(each) for each in row])
    return torch.from_numpy(ids), torch.from_numpy(documents)
