"""From texts to token ids, of those texts that filters let through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datamodules.encoding.batches import bounded_batches
from datamodules.encoding.texts import TextEncoder
from datamodules.filters.chain import Chain
from datamodules.filters.filter import filter_of
from datamodules.records.text_source import texts_of
from datamodules.sources.bad_records import BadRecords
from datamodules.sources.units import Unit
from datamodules.storage.hashing import text_hash
from datamodules.storage.shards import Document


@dataclass(frozen=True)
class FilteredTextEncoder(TextEncoder):
    """A `TextEncoder` that leaves documents out, and notes of the others what filters compare later.

    Args:
        filters: a `Chain.noting`.
    """

    filters: list[dict[str, Any]]

    @classmethod
    def around(cls, plain: TextEncoder, chain: Chain) -> FilteredTextEncoder:
        """The same of what the filters let through."""
        return cls(plain.tokenizer, plain.prefix, plain.suffix, chain.noting())

    @cached_property
    def chain(self) -> Chain:
        """The filters."""
        return Chain([filter_of(spec) for spec in self.filters])

    def settings(self) -> dict[str, Any]:
        """See `TextEncoder`."""
        return super().settings() | {"filters": self.filters}

    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        """The unit's documents, streaming; what was left out is in `bad.filtered` once all were taken."""
        funnel = self.chain.funnel()
        for batch in bounded_batches(self.chain.passing(texts_of(unit, bad), funnel), len):
            notes = self.chain.notes(batch)
            for text, ids, note in zip(batch, self.encode(batch), notes, strict=True):
                data = text.encode()
                yield Document(ids, None, len(data), text_hash(data), details=note.tobytes())
        bad.filtered = funnel.as_json()
