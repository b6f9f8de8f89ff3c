"""Packed rows, documents and prompts by index, read from the token shards."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
from torch.utils.data import Dataset

from datamodules.serving.collate import Piece, Row
from datamodules.storage.rows import RowIndex
from datamodules.storage.shards import Shard


class TokenSpans:
    """Spans of the tokens of many shards, as if they were one long array."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        self.bases = [0, *accumulate(shard.statistics["num_tokens"] for shard in shards)]

    def locate(self, start: int) -> tuple[Shard, int]:
        """The shard that a token lies in, and its place there."""
        number = bisect_right(self.bases, start) - 1
        return self.shards[number], start - self.bases[number]

    def read(self, start: int, length: int) -> Piece:
        """A span; it lies in one shard, as documents do."""
        shard, begin = self.locate(start)
        trained = None if shard.trained is None else shard.trained[begin : begin + length]
        return Piece(shard.tokens[begin : begin + length], trained)


class PackedRows(Dataset[Row]):
    """The packed rows of several sources, one after the other; row -1 is blank.

    Args:
        sources: for each source its row index, and the shards that it points into.
    """

    def __init__(self, sources: Sequence[tuple[RowIndex, Sequence[Shard]]]) -> None:
        self.tokens = [TokenSpans(shards) for _, shards in sources]
        self.num_rows = [index.statistics["num_rows"] for index, _ in sources]
        self.bases = [0, *accumulate(self.num_rows)]
        self.rows = [index.rows() for index, _ in sources]
        self.spans = [index.spans() for index, _ in sources]

    def __len__(self) -> int:
        return self.bases[-1]

    def __getitem__(self, row: int) -> Row:
        return [tokens.read(start, length) for tokens, start, length in self.pieces(row)]

    def pieces(self, row: int) -> list[tuple[TokenSpans, int, int]]:
        """What stands in a row: tokens to read from, start and length of each piece."""
        if row < 0:
            return []
        source = bisect_right(self.bases, row) - 1
        begin = row - self.bases[source]
        first, end = self.rows[source][begin : begin + 2].tolist()
        return [(self.tokens[source], start, length) for start, length in self.spans[source][first:end].tolist()]


class NumberedRows(Dataset[tuple[int, Row]]):
    """Each row behind its number, -1 for a blank one, for what is kept of rows elsewhere.

    Args:
        rows: by number.
        num_rows: of each source, through which numbers count.
    """

    def __init__(self, rows: Dataset[Row], num_rows: Sequence[int]) -> None:
        self.rows = rows
        self.num_rows = list(num_rows)

    def __len__(self) -> int:
        return sum(self.num_rows)

    def __getitem__(self, row: int) -> tuple[int, Row]:
        return row, self.rows[row]


class Documents(Dataset[Piece]):
    """Whole documents of several sources, one after the other, however long they are."""

    def __init__(self, sources: Sequence[tuple[RowIndex, Sequence[Shard]]]) -> None:
        self.tokens = [TokenSpans(shards) for _, shards in sources]
        self.spans = [index.documents() for index, _ in sources]
        self.bases = [0, *accumulate(len(spans) for spans in self.spans)]

    def __len__(self) -> int:
        return self.bases[-1]

    def __getitem__(self, document: int) -> Piece:
        tokens, start, length, prompt = self._find(document)
        return tokens.read(start, length)._replace(prompt=prompt)

    def place(self, document: int) -> tuple[TokenSpans, int, int]:
        """Where a document is: tokens to read from, its start and its length."""
        return self._find(document)[:3]

    def _find(self, document: int) -> tuple[TokenSpans, int, int, int]:
        source = bisect_right(self.bases, document) - 1
        begin = document - self.bases[source]
        return (self.tokens[source], *self.spans[source][begin : begin + 1].tolist()[0])


class DocumentPrompts(Dataset[np.ndarray]):
    """What `predict` goes on from, one prompt a document.

    Blank rows (-1) are left out of a batch. A batch of nothing else holds the first document: sharded models need
    every rank to generate as often as the others.

    Args:
        documents: the documents.
        prompt_of: the ids of a document that are its prompt.
    """

    def __init__(self, documents: Documents, prompt_of: Callable[[Piece], np.ndarray]) -> None:
        self.documents = documents
        self.prompt_of = prompt_of

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, document: int) -> np.ndarray:
        return self.prompt_of(self.documents[document])

    def __getitems__(self, documents: list[int]) -> list[np.ndarray]:
        return [self[document] for document in documents if document >= 0] or [self[0]]
