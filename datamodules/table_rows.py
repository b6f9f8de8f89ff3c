"""Rows of columnar data as records, of which text is seen to be UTF-8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from datamodules.units import Bad, Record, Row

if TYPE_CHECKING:
    import pyarrow as pa


def rows_of(batch: pa.RecordBatch | pa.Table) -> Iterator[Record | Bad]:
    """The rows; `Bad` where a text is not UTF-8, of which arrow makes sure nowhere."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        rows = [_row_alone(batch.slice(number, 1)) for number in range(batch.num_rows)]
    for row in rows:
        yield row if isinstance(row, Bad) else Row(row)


def _row_alone(batch: pa.RecordBatch | pa.Table) -> Record | Bad:
    record = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            record[name] = column[0].as_py()
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            return Bad(f"column {name!r}: its byte 0x{byte:02x} is not UTF-8; write the column anew as UTF-8")
    return record
