"""What DataModules of records share, whether they train on the replies or sample them: columns by other names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datamodules.base import ResumableDataModule
from datamodules.errors import DataError
from datamodules.records.record_source import OtherSource, RecordSource, Shapes, peek_records, record_units
from datamodules.records.shapes import SHAPES
from datamodules.sources.bad_records import BadRecords
from datamodules.sources.units import Unit


class RecordDataModule(ResumableDataModule):
    """Reads records; a subclass has the settings below, and says what is read of a unit (`read`).

    Attributes:
        columns: how columns are called that have other names.
        val_columns: the same for `val_path`; None: `columns` where it has them, else the usual names.
    """

    shapes: Shapes = SHAPES
    """Those that the records may have."""
    columns: dict[str, str | list[str]] | None
    val_columns: dict[str, str | list[str]] | None

    @property
    def column_names(self) -> dict[str, str | list[str]] | None:
        """How the columns of a path are called that have other names."""
        return self.columns

    @property
    def read(self) -> Callable[[Unit, BadRecords], Iterator[Any]]:
        """One item a record of a unit that can be used; the others are noted."""
        raise NotImplementedError

    def check_settings(self) -> None:
        """As every DataModule, and the columns' names."""
        super().check_settings()
        if self.sources is not None and self.column_names is not None:
            raise DataError("columns: with sources, name them in the source that they belong to")
        if self.val_columns is not None and self.val_path is None:
            raise DataError("val_columns: they are those of val_path, which is not given")
        self.check_tokenizer()

    def check_tokenizer(self) -> None:
        """Raises `DataError` where there is none, or it has no chat template that can be used."""
        if self.tokenizer_name is None:
            raise DataError("tokenizer: none is named; give --tokenizer, or --model.backbone.path with one in it")
        _ = self.read

    def source_of(self, path: str) -> RecordSource:
        """A path, read with `columns`."""
        return RecordSource(path, columns=self.column_names)

    def val_source_of(self, path: str) -> RecordSource:
        """A path to validate on, read with `val_columns`."""
        own = self.val_columns is not None
        return RecordSource(path, columns=self.val_columns) if own else OtherSource(path, columns=self.column_names)

    def peek(self, source: RecordSource, root: Path) -> None:
        """Reads the first records."""
        peek_records(source, root, self.on_bad_record, self.read, self.shapes)

    def find_units(self, source: RecordSource, root: Path, look_again: bool) -> list[Unit]:
        """All there is to read in a source, with the shape of its records."""
        return record_units(source, root, look_again, self.shapes)
