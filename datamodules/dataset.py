"""Packed rows and prompts by index, read from the token shards."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from torch.utils.data import Dataset

from datamodules.collate import Row
from datamodules.rows import RowIndex
from datamodules.shards import Shard


class TokenSpans:
    """Spans of the tokens of many shards, as if they were one long array."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        self.bases = [0, *accumulate(shard.facts["num_tokens"] for shard in shards)]

    def read(self, start: int, length: int) -> np.ndarray:
        """(length,) token ids; a span lies in one shard, as documents do."""
        shard = bisect_right(self.bases, start) - 1
        begin = start - self.bases[shard]
        return self.shards[shard].tokens[begin : begin + length]


class PackedRows(Dataset[Row]):
    """The packed rows of several sources, one after the other; row -1 is blank.

    Args:
        sources: for each source its row index, and the shards that it points into.
    """

    def __init__(self, sources: Sequence[tuple[RowIndex, Sequence[Shard]]]) -> None:
        self.tokens = [TokenSpans(shards) for _, shards in sources]
        self.num_rows = [index.facts["num_rows"] for index, _ in sources]
        self.bases = [0, *accumulate(self.num_rows)]
        self.rows = [index.rows() for index, _ in sources]
        self.spans = [index.spans() for index, _ in sources]

    def __len__(self) -> int:
        return self.bases[-1]

    def __getitem__(self, row: int) -> Row:
        if row < 0:
            return []
        source = bisect_right(self.bases, row) - 1
        begin = row - self.bases[source]
        first, end = self.rows[source][begin : begin + 2].tolist()
        spans = self.spans[source][first:end].tolist()
        return [self.tokens[source].read(start, length) for start, length in spans]


class Prompts(Dataset[np.ndarray]):
    """The beginnings of documents.

    Blank rows (-1) are left out of a batch. A batch of nothing else holds the first document: sharded models need
    every rank to generate as often as the others.

    Args:
        prompt_len: tokens of a prompt; shorter documents are taken whole, without the `num_suffix` ids that end them.
    """

    def __init__(self, sources: Sequence[tuple[RowIndex, Sequence[Shard]]], prompt_len: int, num_suffix: int) -> None:
        self.tokens = [TokenSpans(shards) for _, shards in sources]
        self.documents = [index.documents() for index, _ in sources]
        self.bases = [0, *accumulate(len(documents) for documents in self.documents)]
        self.prompt_len = prompt_len
        self.num_suffix = num_suffix

    def __len__(self) -> int:
        return self.bases[-1]

    def __getitem__(self, document: int) -> np.ndarray:
        source = bisect_right(self.bases, document) - 1
        begin = document - self.bases[source]
        start, length = self.documents[source][begin : begin + 1].tolist()[0]
        return self.tokens[source].read(start, min(self.prompt_len, max(1, length - self.num_suffix)))

    def __getitems__(self, documents: list[int]) -> list[np.ndarray]:
        return [self[document] for document in documents if document >= 0] or [self[0]]
