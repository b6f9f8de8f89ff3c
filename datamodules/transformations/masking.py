"""Masked language modelling: some tokens are hidden, others each time that a row is served, and are to be told again.

BERT (Devlin et al., arXiv:1810.04805); masks that are drawn anew are RoBERTa's (Liu et al., arXiv:1907.11692).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.errors import DataError
from datamodules.serving.collate import IGNORE, Piece, Row
from datamodules.transformations.draws import generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MASK = "<|mask|>"
"""The mask token of a tokenizer that is trained here."""

HIDDEN, SWAPPED = 0.8, 0.9
"""Of the chosen tokens 80 % are hidden, 10 % become any other token, and 10 % stay, so that the network cannot tell
which of the tokens that it sees are right."""

WORD_BEGINS = "Ġ▁Ċĉč"  # how byte-level and SentencePiece vocabularies write a space and other whitespace
LONE_BYTE = "<0x[0-9A-F]{2}>"  # how SentencePiece writes a byte of what it does not know
CONTINUES = "##"  # how WordPiece writes that a token is not a word's first


@dataclass(frozen=True)
class Masking:
    """Which tokens are chosen.

    Args:
        probability: of each token, or word. 0.15 is BERT's; 0.3, ModernBERT's, gives twice the loss for each pass.
        whole_words: choose words, with all their tokens: what is hidden cannot be told from its other half.
    """

    probability: float = 0.15
    whole_words: bool = False

    def check(self) -> None:
        """Raise `DataError` for a probability that is none."""
        if not 0 < self.probability < 1:
            raise DataError(f"masking: probability must lie between 0 and 1, not {self.probability}")


class Masks:
    """Hides tokens of a row: a `Draw`. Control tokens are never chosen.

    Args:
        settings: which.
        tokenizer: of the data.
        seed: names the masks.

    Raises:
        DataError: the tokenizer has no mask token.
    """

    def __init__(self, settings: Masking, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> None:
        if tokenizer.mask_token_id is None:
            raise DataError(
                "masking: the tokenizer has no mask token; take that of an encoder (BERT, ModernBERT), give it one"
                " (tokenizer.mask_token = ...) and save it again, or name none: one is trained from the text"
            )
        self.settings = settings
        self.seed = seed
        self.mask = tokenizer.mask_token_id
        control = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
        vocabulary = {number: token for token, number in tokenizer.get_vocab().items()}
        self.is_control = np.zeros(max(vocabulary) + 1, bool)
        self.is_control[sorted(control)] = True
        self.plain = np.array(sorted(vocabulary.keys() - control))
        self._joins = _joins(vocabulary) if settings.whole_words else None

    def key(self) -> list[Any]:
        """All that decides what is made of a row; JSON."""
        return ["masking", asdict(self.settings)]

    def __call__(self, row: Row, *, time: int, number: int) -> Row:
        """See `Draw`."""
        return [self.masked(piece, generator(self.seed, time, number, place)) for place, piece in enumerate(row)]

    def masked(self, piece: Piece, random: np.random.Generator) -> Piece:
        """A piece with some tokens hidden, which its labels tell."""
        ids = piece.ids.astype(np.int64)
        chosen = (random.random(len(ids)) < self.settings.probability)[self.words(ids)] & ~self.is_control[ids]
        labels = np.where(chosen, ids, IGNORE)
        fate, others = random.random(len(ids)), random.choice(self.plain, len(ids))
        ids = np.where(chosen & (fate < HIDDEN), self.mask, ids)
        ids = np.where(chosen & (fate >= HIDDEN) & (fate < SWAPPED), others, ids)
        return Piece(ids, chosen, piece.prompt, labels)

    def words(self, ids: np.ndarray) -> np.ndarray:
        """(n,) the number of each token's word; tokens are words of their own where `whole_words` is off."""
        if self._joins is None:
            return np.arange(len(ids))
        to_next, to_last = self._joins
        begins = ~(to_last[ids] & np.concatenate([[False], to_next[ids[:-1]]]))
        return np.cumsum(begins) - 1


def _joins(vocabulary: dict[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """For each id whether a word may go on behind it, and whether it may go on with it."""
    to_next, to_last = (np.zeros(max(vocabulary) + 1, bool) for _ in range(2))
    is_word_piece = any(token.startswith(CONTINUES) and len(token) > len(CONTINUES) for token in vocabulary.values())
    for number, token in vocabulary.items():
        if is_word_piece:
            to_next[number], to_last[number] = True, token.startswith(CONTINUES)
        else:
            # Letters and digits, and the bytes of letters beyond ASCII, go on; a sign is a word of its own.
            spelled = chr(int(token[3:5], 16)) if re.fullmatch(LONE_BYTE, token) else token
            to_next[number], goes_on = (end.isalnum() or end > "\x7f" for end in (spelled[-1:], spelled[:1]))
            to_last[number] = goes_on and token[:1] not in WORD_BEGINS
    return to_next, to_last
