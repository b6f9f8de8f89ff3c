"""The batch that a DataModule makes of its first records, without building all of its data."""

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datamodules.base import ResumableDataModule
from datamodules.records.text_source import TextSource
from datamodules.sources.discover import Source, first_units
from datamodules.sources.formats import FORMATS, records
from datamodules.sources.units import Bad, Record, Row, Unit

RECORDS = 64
"""Of each source: enough for a row of usual length, and encoded in a moment."""


def first_batch(data: ResumableDataModule) -> Mapping[str, Any] | None:
    """What training would begin with if there were no more than the first records of each source.

    They are copied into a folder that is gone afterwards, and so is their cache: records, tokenizer, template, packing
    and collating are those of a run, which would do the same with all data first.

    Args:
        data: before its data is built; it stays as it is.

    Returns:
        None where a source is no file, so that nothing of it can be had before it is downloaded or streamed.

    Raises:
        DataError: these records make no batch.
    """
    with TemporaryDirectory() as folder:
        sources = [
            _first_of(source, data.root, Path(folder) / f"{i}.jsonl") for i, source in enumerate(data.train_sources)
        ]
        if None in sources:
            return None
        copied: Any = copy.copy(data)
        copied.cache_dir = str(Path(folder) / "cache")
        copied.num_workers, copied.val_share = 0, 0.0
        copied.__dict__ |= {"train_sources": sources, "val_sources": []}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are few records
            copied.build(look_again=True)
            batch: Mapping[str, Any] = next(iter(copied.train_dataloader()))
        return batch


def _first_of(source: Source, root: Path, path: Path) -> Source | None:
    units = first_units(source, root)
    with path.open("w") as file:
        for record in islice(_records(units, source), RECORDS):
            file.write(json.dumps(record, default=str) + "\n")
    return replace(source, path=str(path), name=None, split="train") if units else None


def _records(units: list[Unit], source: Source) -> Iterator[Record]:
    for unit in units:
        for _, record in records(unit):
            if isinstance(record, Bad):
                continue
            if isinstance(source, TextSource) and not FORMATS[unit.format].columns:
                yield {source.text_column or unit.column: record[unit.column]}
            elif isinstance(record, Row):
                yield {name: value for name, value in record.items() if value is not None}
            else:
                yield record
