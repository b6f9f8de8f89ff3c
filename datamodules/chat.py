"""What DataModules of conversations share: columns, the tokenizer with its chat template, and where to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from datamodules.encoding.tokenizer import load_tokenizer
from datamodules.packed import PackedDataModule
from datamodules.record_data import RecordDataModule
from datamodules.records.record_source import ChatRecord, RecordSource, Writer
from datamodules.sources.bad_records import BadRecords
from datamodules.sources.units import Unit
from datamodules.templates.choice import set_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT_SEQ_LEN = 2048


class ChatDataModule(RecordDataModule, PackedDataModule):
    """Learns from conversations, which a chat template writes down.

    A subclass says what it makes of a record (`encoder`).

    Args:
        path: what to read; several paths are read as one, every row once an epoch.
        sources: the same with weights and options for each; excludes `path`.
        columns: how columns are called that have other names, such as `{question: frage, answer: antwort}`. Several
            columns are read as one text, in that order: `{prompt: [body, question]}`.
        template: a chat template by name (`chatml`, `llama3`, `mistral`) or file. None: the tokenizer's own; where it
            has none but the tokens of ChatML, `chatml`. It is saved with the model.
        seq_len: T, tokens of a row.
        val_columns: as `columns`, for `val_path`. None: `columns` where it has them, else the usual names.
        kwargs: see `PackedDataModule`.
    """

    def __init__(
        self,
        path: str | list[str] | None = None,
        sources: list[RecordSource] | None = None,
        columns: dict[str, str | list[str]] | None = None,
        template: str | None = None,
        seq_len: int = DEFAULT_SEQ_LEN,
        val_columns: dict[str, str | list[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(path, seq_len=seq_len, **kwargs)
        self.sources = sources
        self.columns = columns
        self.template = template
        self.val_columns = val_columns

    @property
    def encoder(self) -> Any:
        """What writes records down (a `Writer`) and makes documents of them (an `Encoder`)."""
        raise NotImplementedError

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Sets what else goes with the chat template."""

    @property
    def read(self) -> Callable[[Unit, BadRecords], Iterator[Any]]:
        """The records as the chat template writes them."""
        writer: Writer = self.encoder
        return writer.written

    def records(self, part: Literal["train", "val"]) -> Iterator[ChatRecord]:
        """The records that are trained or validated on, as they were written, streaming; once the data is prepared."""
        selection, encoder = self.selections[part], self.encoder
        for unit in (unit for units in self._units[part] for unit in units):
            for one in encoder.read(unit):
                if selection.mask(np.array([one.hash], np.uint64)).item():
                    yield one

    def records_key(self, part: Literal["train", "val"]) -> list[Any]:
        """What `records` depends on; JSON."""
        units = [unit for units in self._units[part] for unit in units]
        read = [[unit.digest, unit.start, unit.stop, unit.shape, unit.columns] for unit in units]
        return [read, asdict(self.selections[part])]

    def make_tokenizer(self, units: list[Unit], root: Path) -> PreTrainedTokenizerFast:
        """The one that is named, with the chat template."""
        return self.chat_tokenizer

    def make_encoder(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        """See `encoder`."""
        return self.encoder

    @cached_property
    def chat_tokenizer(self) -> PreTrainedTokenizerFast:
        """The named tokenizer, with the chat template."""
        assert self.tokenizer_name is not None
        tokenizer = load_tokenizer(self.tokenizer_name, self.new_tokens)
        set_template(tokenizer, self.template)
        self.prepare_tokenizer(tokenizer)
        return tokenizer
