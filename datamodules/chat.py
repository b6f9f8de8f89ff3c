"""What DataModules of conversations share: columns, the tokenizer with its chat template, and where to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from datamodules.encoding.tokenizer import load_tokenizer
from datamodules.errors import DataError
from datamodules.packed import PackedDataModule
from datamodules.records.record_source import (
    ChatRecord,
    OtherSource,
    RecordSource,
    Shapes,
    Writer,
    peek_records,
    record_units,
)
from datamodules.records.shapes import SHAPES
from datamodules.sources.units import Unit
from datamodules.templates.choice import set_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DEFAULT_SEQ_LEN = 2048


class ChatDataModule(PackedDataModule):
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

    shapes: Shapes = SHAPES

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

    def check_settings(self) -> None:
        """As every DataModule over packed rows, and what only conversations have."""
        super().check_settings()
        if self.sources is not None and self.columns is not None:
            raise DataError("columns: with sources, name them in the source that they belong to")
        if self.val_columns is not None and self.val_path is None:
            raise DataError("val_columns: they are those of val_path, which is not given")
        self.check_tokenizer()

    def check_tokenizer(self) -> None:
        """Raises `DataError` where there is none, or it has no chat template that can be learned from."""
        if self.tokenizer_name is None:
            raise DataError("tokenizer: none is named; give --tokenizer, or --model.backbone.path with one in it")
        _ = self.encoder

    @property
    def encoder(self) -> Any:
        """What writes records down (a `Writer`) and makes documents of them (an `Encoder`)."""
        raise NotImplementedError

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Sets what else goes with the chat template."""

    def source_of(self, path: str) -> RecordSource:
        """A path, read with `columns`."""
        return RecordSource(path, columns=self.columns)

    def val_source_of(self, path: str) -> RecordSource:
        """A path to validate on, read with `val_columns`."""
        own = self.val_columns is not None
        return RecordSource(path, columns=self.val_columns) if own else OtherSource(path, columns=self.columns)

    def peek(self, source: RecordSource, root: Path) -> None:
        """Reads and writes down the first records."""
        writer: Writer = self.encoder
        peek_records(source, root, self.on_bad_record, writer, self.shapes)

    def find_units(self, source: RecordSource, root: Path, look_again: bool) -> list[Unit]:
        """All there is to read, with the shape of the records."""
        return record_units(source, root, look_again, self.shapes)

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
