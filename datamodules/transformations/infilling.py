"""Fill-in-the-middle: a document is cut in three, and its middle moved to the end, behind what stands around it.

A causal network learns so to write what belongs between two texts, at hardly any cost to what it learns from left to
right (Bavarian et al., "Efficient Training of Language Models to Fill in the Middle", arXiv:2207.14255).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.encoding.tokenizer import framing
from datamodules.errors import DataError
from datamodules.serving.collate import Piece, Row
from datamodules.transformations.draws import generator
from datamodules.transformations.parts import PartTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CUTS_TRIED = 8
ROOM_OF_A_ROW = 8
"""Tokens of a row that packing leaves free, over what is expected of each document's markers and seams."""

SEAMS = 2
"""Tokens that two cuts add to a text, about 1.5 on average: a token that is cut becomes two."""


@dataclass(frozen=True)
class Markers:
    """The control tokens of a rearranged document, each one token of the vocabulary.

    Args:
        prefix, suffix, middle: what stands before each part.
        end: what stands behind the middle, before the token that ends a text; None for models without one.
    """

    prefix: str
    suffix: str
    middle: str
    end: str | None = None

    def names(self) -> list[str]:
        """Those that there are."""
        return [name for name in astuple(self) if name is not None]


KNOWN = (
    Markers("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma, and tokenizers trained here
    Markers("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite, StableCode
    Markers("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Markers("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001 (DeepSeek's own letters)
    Markers("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),  # CodeLlama
)


@dataclass(frozen=True)
class FillInTheMiddle:
    """How many documents are rearranged, and how.

    Args:
        rate: share of the documents; 0.5 by default, at which the paper finds the loss from left to right unharmed.
        spm_share: share of those with the suffix before the prefix (SPM), which spares an editor's cache each key that
            is typed; the others have the prefix first (PSM).
        markers: by name. None: those of a known family (StarCoder, Qwen, DeepSeek, CodeLlama) that the tokenizer has.
    """

    rate: float = 0.5
    spm_share: float = 0.5
    markers: Markers | None = None

    def check(self) -> None:
        """Raise `DataError` for a share that is none."""
        for name in ("rate", "spm_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"fim: {name} must lie between 0 and 1, not {getattr(self, name)}")

    @property
    def new_markers(self) -> Markers:
        """What a tokenizer that is trained here gets."""
        return self.markers or KNOWN[0]


def find_markers(settings: FillInTheMiddle, tokenizer: PreTrainedTokenizerFast) -> Markers:
    """The markers that a tokenizer has.

    Raises:
        DataError: those that are named are not among its tokens, or no known family's are.
    """
    vocabulary = tokenizer.get_vocab()
    for markers in KNOWN if settings.markers is None else [settings.markers]:
        if all(name in vocabulary for name in markers.names()):
            return markers
    control = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    has = f"its control tokens are {', '.join(control[:20])}{', ...' if len(control) > 20 else ''}"
    new = "--model.backbone.new_tokens='" + str(settings.new_markers.names()).replace("'", '"') + "'"
    way_out = f"add new ones to a trained network by {new}, or name a tokenizer that has them"
    if settings.markers is not None:
        missing = next(name for name in settings.markers.names() if name not in vocabulary)
        raise DataError(
            f"fim: the tokenizer has no token {missing!r} (fim.markers); {has}; name some of these, {way_out}"
        )
    raise DataError(
        f"fim: the tokenizer has no markers of a family that is known; {has}; name yours by fim.markers, {way_out}"
    )


class Infilling:
    """Rearranges some pieces of a row: a `Draw`.

    The text of a piece is cut between two characters drawn evenly, and each part tokenized by itself, as an editor
    does that knows what stands before and behind the cursor. A piece of a document that is longer than a row is
    rearranged by itself, so that no part of it falls into another row, and ends as a document does.

    Args:
        settings: how many, and how.
        tokenizer: of the data.
        seq_len: tokens of a row. Where a row has no room for a piece's markers it stays as it is.
        seed: names the cuts.
    """

    def __init__(
        self, settings: FillInTheMiddle, tokenizer: PreTrainedTokenizerFast, seq_len: int, seed: int = 0
    ) -> None:
        self.settings = settings
        self.seq_len = seq_len
        self.seed = seed
        self.parts = PartTokenizer(tokenizer)
        marks = framing(tokenizer)
        self.before, self.behind = marks.prefix, marks.suffix
        markers = find_markers(settings, tokenizer)
        self.markers = markers
        ids: dict[str, int] = {name: tokenizer.get_vocab()[name] for name in markers.names()}
        self.prefix, self.suffix, self.middle = (ids[name] for name in markers.names()[:3])
        self.end = [] if markers.end is None else [ids[markers.end]]
        self.control = np.array([*tokenizer.added_tokens_decoder, *ids.values()])

    def key(self) -> list[Any]:
        """All that decides what is made of a row; JSON."""
        return ["fim", asdict(self.settings), asdict(self.markers)]

    def __call__(self, row: Row, *, time: int, number: int) -> Row:
        """See `Draw`."""
        room = self.seq_len - sum(len(piece.ids) for piece in row)
        pieces = []
        for place, piece in enumerate(row):
            random = generator(self.seed, time, number, place)
            new = None
            if random.random() < self.settings.rate:
                new = self.rearrange(piece.ids.tolist(), random, len(piece.ids) + room)
            if new is not None:
                room -= len(new) - len(piece.ids)
                piece = Piece(np.array(new, piece.ids.dtype))
            pieces.append(piece)
        return pieces

    def rearrange(self, ids: Sequence[int], random: np.random.Generator, most: int) -> list[int] | None:
        """A piece of a document with its middle at the end; None where there is no text in it, or no room.

        Args:
            ids: of the piece, with what begins and ends a document where it does.
            random: draws the cuts.
            most: tokens that it may have.
        """
        before, inner, _ = self._taken_apart(list(ids))
        if not inner or np.isin(inner, self.control).any():
            return None
        whole = self.parts.whole_characters(inner)
        text = self.parts.decode(inner[whole])
        for _ in range(CUTS_TRIED):
            first, second = sorted(random.integers(0, len(text) + 1, 2).tolist())
            cut = (text[:first], text[first:second], text[second:])
            prefix, middle, suffix = (self.parts.encode(part) for part in cut)
            prefix, suffix = [*inner[: whole.start], *prefix], [*suffix, *inner[whole.stop :]]
            if random.random() < self.settings.spm_share:
                parts = [self.prefix, self.suffix, *suffix, self.middle, *prefix, *middle]
            else:
                parts = [self.prefix, *prefix, self.suffix, *suffix, self.middle, *middle]
            new = [*before, *parts, *self.end, *self.behind]
            if len(new) <= most:
                return new
        return None

    def restore(self, ids: Sequence[int]) -> str:
        """The text of a piece, from left to right, whether it is rearranged or not."""
        _, inner, _ = self._taken_apart(list(ids))
        if inner[:1] == [self.prefix]:
            suffix, middle = inner.index(self.suffix), inner.index(self.middle)
            last = inner[middle + 1 : len(inner) - len(self.end)]
            inner = [*inner[1:suffix], *last, *inner[suffix + 1 : middle]]
        return self.parts.decode(inner)

    def _taken_apart(self, ids: list[int]) -> tuple[list[int], list[int], list[int]]:
        """What begins a document, its text, and what ends it; the first and the last may be in other pieces."""
        start = len(self.before) if ids[: len(self.before)] == self.before else 0
        stop = len(ids) - (len(self.behind) if ids[-len(self.behind) :] == self.behind else 0)
        return ids[:start], ids[start:stop], ids[stop:]


def room(settings: FillInTheMiddle) -> tuple[int, int]:
    """Tokens that packing leaves free: in a row, and beside each piece in it."""
    num_markers = len(settings.new_markers.names())
    return ROOM_OF_A_ROW, math.ceil(settings.rate * (num_markers + SEAMS))
