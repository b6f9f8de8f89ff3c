"""Reading columnar data as streams: parquet by row groups, arrow files, hub data sets by shards."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from datamodules.errors import DataError
from datamodules.sources.table_rows import rows_of
from datamodules.sources.text_files import unit_bytes
from datamodules.sources.units import Bad, Format, Place, Record, Unit

ROWS_AT_ONCE = 256  # long documents come in batches of this many: tens of MB at the most


def _row(unit: Unit, place: Place) -> str:
    return f"{unit.path}, row {place + 1}"


def _no_name(path: str) -> DataError:
    return DataError(f"{path}: the name of a column is not UTF-8; write the file anew")


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """What shows in the block that the file is damaged becomes an error that names it; raises `DataError`."""
    import pyarrow as pa

    try:
        yield
    except UnicodeDecodeError as error:
        raise _no_name(path) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is damaged ({' '.join(str(error).split())}); fetch it again") from error


def _parquet(path: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except UnicodeDecodeError as error:
        raise _no_name(path) from error
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a readable parquet file ({error})") from error


def _split_parquet(path: str) -> list[tuple[int, int, int]]:
    """Neighbouring row groups together up to a unit's size, since some writers make groups of a few rows."""
    with _parquet(path) as file:
        sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
    ends = list(accumulate(sizes))
    step = unit_bytes(sum(sizes))
    units = [list(group) for _, group in groupby(range(len(sizes)), key=lambda i: (ends[i] - 1) // step)]
    return [(unit[0], unit[-1] + 1, sum(sizes[i] for i in unit)) for unit in units]


def _read_parquet(unit: Unit) -> Iterator[tuple[Place, Record | Bad]]:
    with _parquet(unit.path) as file, _naming(unit.path):
        stop = file.metadata.num_row_groups if unit.stop < 0 else unit.stop
        place = sum(file.metadata.row_group(i).num_rows for i in range(unit.start))
        columns = [unit.column] if unit.column in file.schema_arrow.names else None
        groups = list(range(unit.start, stop))
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=groups, columns=columns):
            for record in rows_of(batch):
                yield place, record
                place += 1


def _whole(path: str) -> list[tuple[int, int, int]]:
    return [(0, -1, Path(path).stat().st_size)]


def _read_arrow(unit: Unit) -> Iterator[tuple[Place, Record | Bad]]:
    """An arrow file, or an arrow stream as `datasets` saves it."""
    import pyarrow as pa

    with pa.memory_map(unit.path) as source, _naming(unit.path):
        try:
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            try:
                batches = iter(pa.ipc.open_stream(source))
            except pa.ArrowInvalid as error:
                raise DataError(f"{unit.path} is not a readable arrow file ({error})") from error
        place = 0
        for batch in batches:
            if unit.column in batch.schema.names:
                batch = batch.select([unit.column])
            for begin in range(0, batch.num_rows, ROWS_AT_ONCE):
                for record in rows_of(batch.slice(begin, ROWS_AT_ONCE)):
                    yield place, record
                    place += 1


def hub_stream(path: str, name: str | None, split: str, revision: str | None) -> Any:
    """The data set as a stream (`datasets.IterableDataset`).

    Raises:
        DataError: it cannot be reached, or has no such configuration or split.
    """
    import datasets

    try:
        return datasets.load_dataset(path, name, split=split, revision=revision, streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"path: {path!r} is neither here nor could it be read from the Hugging Face hub (split {split!r}): {reason}"
        ) from error


def _hub_revision(unit: Unit) -> str | None:
    return unit.digest.partition("@")[2] or None


def _read_hub(unit: Unit) -> Iterator[tuple[Place, Record | Bad]]:
    stream = hub_stream(unit.path, unit.name, unit.split, _hub_revision(unit))
    if stream.num_shards > 1:
        stream = stream.shard(num_shards=stream.num_shards, index=unit.start)
    yield from enumerate(record for row in stream.with_format("arrow") for record in rows_of(row))


def _locate_hub(unit: Unit, place: Place) -> str:
    return f"{unit.path} (split {unit.split}, shard {unit.start}), row {place + 1}"


def _hub_is_split_elsewhere(path: str) -> list[tuple[int, int, int]]:
    raise NotImplementedError(f"{path}: `sources.hub_units` cuts hub data sets, as that takes more than a path")


TABLE_FORMATS = {
    "parquet": Format(_split_parquet, _read_parquet, _row),
    "arrow": Format(_whole, _read_arrow, _row),
    "hub": Format(_hub_is_split_elsewhere, _read_hub, _locate_hub),
}
