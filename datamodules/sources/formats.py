"""The formats that are read, by the suffix of the file."""

from collections.abc import Iterator
from pathlib import Path

from datamodules.sources.table_formats import TABLE_FORMATS
from datamodules.sources.text_formats import TEXT_FORMATS
from datamodules.sources.units import Bad, Format, Place, Record, Unit

FORMATS: dict[str, Format] = {**TEXT_FORMATS, **TABLE_FORMATS}
SUFFIXES = {
    ".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
COMPRESSED = (".gz", ".zst")


def format_of(path: str) -> str | None:
    """The name of the file's format by its suffix, under .gz and .zst too; None: not one that is read here."""
    name = Path(path).name.lower()
    compressed = name.endswith(COMPRESSED)
    found = SUFFIXES.get(Path(Path(name).stem if compressed else name).suffix)
    return None if compressed and found in TABLE_FORMATS else found


def records(unit: Unit) -> Iterator[tuple[Place, Record | Bad]]:
    """(place, record) of every record of the unit; a record that cannot be read comes as `Bad`."""
    return FORMATS[unit.format].read(unit)
