"""From texts to token ids, each text a document, all of it in the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.encoding.batches import bounded_batches
from datamodules.encoding.tokenizer import bare, framing
from datamodules.records.text_source import texts_of
from datamodules.sources.bad_records import BadRecords
from datamodules.sources.units import Unit
from datamodules.storage.hashing import text_hash
from datamodules.storage.shards import Document, token_dtype

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class TextEncoder:
    """Turns texts into framed token ids.

    Args:
        tokenizer: a copy of its own, since switches are set on it.
        prefix, suffix: ids before and after each text.
    """

    tokenizer: Tokenizer
    prefix: list[int]
    suffix: list[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, needs_end: bool = True) -> TextEncoder:
        """With the tokenizer's own marks around a document; see `framing`."""
        marks = framing(tokenizer, needs_end)
        return cls(bare(tokenizer), marks.prefix, marks.suffix)

    @cached_property
    def dtype(self) -> np.dtype:
        """Of token ids on disk."""
        return token_dtype(self.tokenizer)

    def settings(self) -> dict[str, Any]:
        """What another process needs to make the same encoder around the same tokenizer; JSON."""
        return {"prefix": self.prefix, "suffix": self.suffix}

    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        """The unit's documents, streaming."""
        for batch in bounded_batches(texts_of(unit, bad), len):
            for text, ids in zip(batch, self.encode(batch), strict=True):
                data = text.encode()
                yield Document(ids, None, len(data), text_hash(data))

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """One array of ids a text."""
        # A text that spells a special token is text: it must not end a document or open a turn of a conversation.
        self.tokenizer.encode_special_tokens = True
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array([*self.prefix, *encoding.ids, *self.suffix], self.dtype) for encoding in encodings]
