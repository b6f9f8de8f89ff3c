"""Conversations to score, streamed from a file in batches of about equal length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.cache import key_of
from datamodules.contract import ConversationBatch, UnfitBatch
from datamodules.encoding.tokenizer import backend_state, bare
from datamodules.errors import DataError
from datamodules.records.conversations import conversation_of
from datamodules.records.record_source import RECORDS_PEEKED, RecordSource, record_units
from datamodules.serving.layout import SpanLayout
from datamodules.sources.bad_records import BadRecords, OnBadRecord
from datamodules.sources.discover import FILES_PEEKED, first_units
from datamodules.sources.formats import FORMATS, records
from datamodules.sources.surrogates import encodable
from datamodules.sources.units import Bad, Place, Record, Unit
from datamodules.storage.packing import best_fit
from datamodules.templates.chat_template import template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WINDOW = 4096
"""Records that are sorted by length at once; more would wait longer for the first line and hold more in memory."""

ADDED = ("reward", "normalized_reward", "error")
"""The columns that are added to a record that was scored; a record's own of the same name would be lost."""


class _Talk(NamedTuple):
    number: int
    record: Record
    ids: np.ndarray


class _Unfit(NamedTuple):
    number: int
    record: Record
    reason: str


class Conversations:
    """Batches of packed rows of conversations, longest first in each window of records.

    Which conversations share a batch depends on the file alone, so that a run can go on where it was stopped.

    Args:
        source: what to read.
        tokenizer: with its chat template.
        seq_len: T, tokens of a row.
        batch_size: rows of a batch.
        on_bad_record: `stop`, or `skip`: a record that cannot be scored gets no reward and says why. One that has a
            column of `ADDED` stops in any case, as there is no row to write for it.
        root: the cache's folder.
        rank, num_ranks: this process's place among those that score different windows.
    """

    def __init__(
        self,
        source: RecordSource,
        tokenizer: PreTrainedTokenizerFast,
        seq_len: int,
        batch_size: int,
        on_bad_record: OnBadRecord,
        root: Path,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.source = source
        self.tokenizer = bare(tokenizer)
        self.template = template_of(tokenizer)
        self.pad_token_id = tokenizer.pad_token_id
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.on_bad_record = on_bad_record
        self.root = root
        self.rank, self.num_ranks = rank, num_ranks
        self._told: set[str] = set()

    def check(self) -> None:
        """Looks at the first records.

        Raises:
            DataError: there are none of a known shape, or they have a column that scoring adds.
        """
        first_units(self.source, self.root)
        for unit in self._units()[:FILES_PEEKED]:
            for place, record in islice(records(replace(unit, column="")), RECORDS_PEEKED):
                _check_columns(record, unit, place)

    @property
    def key(self) -> str:
        """Names what is scored and how it is written down."""
        units = [[unit.digest, unit.start, unit.stop, unit.shape, unit.columns] for unit in self._units()]
        layout = [self.seq_len, self.batch_size, self.rank, self.num_ranks, WINDOW, self.on_bad_record]
        return key_of(units, layout, backend_state(self.tokenizer), asdict(self.template))

    def __iter__(self) -> Iterator[ConversationBatch | UnfitBatch]:
        items = self._items()
        number = 0
        while window := list(islice(items, WINDOW)):
            if number % self.num_ranks == self.rank:
                yield from self._batches(window)
            number += 1

    def _units(self) -> list[Unit]:
        return record_units(self.source, self.root, look_again=False)

    def _items(self) -> Iterator[_Talk | _Unfit]:
        index = 0
        for unit in self._units():
            bad = BadRecords(unit, self.on_bad_record)
            for place, record in records(replace(unit, column="")):
                _check_columns(record, unit, place)
                text = self._text(record, unit)
                if isinstance(text, Bad):
                    bad.note(place, text)
                    yield _Unfit(index, {} if isinstance(record, Bad) else record, text.reason)
                else:
                    assert not isinstance(record, Bad)
                    ids = self.tokenizer.encode(text, add_special_tokens=False).ids
                    yield self._fitting(index, record, np.array(ids, np.int64))
                index += 1

    def _text(self, record: Record | Bad, unit: Unit) -> str | Bad:
        if isinstance(record, Bad):
            return record
        conversation = conversation_of(record, unit.shape, unit.columns, "train")
        if isinstance(conversation, Bad):
            return conversation
        written = self.template.write(conversation.messages, conversation.tools)
        if isinstance(written, str):
            self._tell(self.template.unread(conversation.messages, conversation.tools))
        return written

    def _tell(self, unread: set[str]) -> None:
        for key in sorted(unread - self._told):
            rank_zero_info(encodable(f"not read: the chat template writes nothing of the key {key} of turns"))
        self._told |= unread

    def _fitting(self, index: int, record: Record, ids: np.ndarray) -> _Talk | _Unfit:
        if len(ids) <= self.seq_len:
            return _Talk(index, record, ids)
        return _Unfit(index, record, f"{len(ids):,} tokens are more than a row has (data.seq_len={self.seq_len:,})")

    def _batches(self, window: list[_Talk | _Unfit]) -> Iterator[ConversationBatch | UnfitBatch]:
        talks = [item for item in window if isinstance(item, _Talk)]
        talks.sort(key=lambda talk: (-len(talk.ids), talk.number))
        row_of, num_rows = best_fit(np.array([len(talk.ids) for talk in talks], np.int64), self.seq_len)
        rows: list[list[_Talk]] = [[] for _ in range(num_rows)]
        for talk, row in zip(talks, row_of.tolist(), strict=True):
            rows[row].append(talk)
        for start in range(0, num_rows, self.batch_size):
            yield self._batch(rows[start : start + self.batch_size])
        unfit = [item for item in window if isinstance(item, _Unfit)]
        if unfit:
            yield {"unfit": [(item.number, item.record, item.reason) for item in unfit]}

    def _batch(self, rows: list[list[_Talk]]) -> ConversationBatch:
        layout = SpanLayout(len(rows), self.seq_len, self.pad_token_id)
        ends = [layout.add(row, talk.ids) for row, talks in enumerate(rows) for talk in talks]
        talks = [talk for row in rows for talk in row]
        return {
            **layout.batch(),
            "ends": torch.tensor(ends),
            "records": [talk.record for talk in talks],
            "indices": [talk.number for talk in talks],
        }


def _check_columns(record: Record | Bad, unit: Unit, place: Place) -> None:
    taken = [] if isinstance(record, Bad) else [name for name in ADDED if name in record]
    if taken:
        raise DataError(
            f"predict_path: {FORMATS[unit.format].locate(unit, place)}: the column {taken[0]!r} is one that predict"
            f" writes itself ({', '.join(ADDED)}); rename it in the file, as {taken[0]}_before, say"
        )
