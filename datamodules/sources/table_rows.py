"""Rows of columnar data as records: text is seen to be UTF-8, and what was stored as JSON becomes what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from datamodules.sources.units import Bad, Record, Row, Whole

if TYPE_CHECKING:
    import pyarrow as pa


def rows_of(batch: pa.RecordBatch | pa.Table) -> Iterator[Record | Bad]:
    """The rows; `Bad` where a text is not UTF-8, of which arrow makes sure nowhere."""
    stored = {field.name: field.type for field in batch.schema if _holds_json(field.type)}
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        rows = [_row_alone(batch.slice(number, 1)) for number in range(batch.num_rows)]
    for row in rows:
        if not isinstance(row, Bad):
            row = Row(row | {name: _decoded(row[name], kind) for name, kind in stored.items()})
        yield row


def _row_alone(batch: pa.RecordBatch | pa.Table) -> Record | Bad:
    record = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            record[name] = column[0].as_py()
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            return Bad(f"column {name!r}: its byte 0x{byte:02x} is not UTF-8; write the column anew as UTF-8")
    return record


def _holds_json(kind: pa.DataType) -> bool:
    import pyarrow as pa

    inner = [field.type for field in kind] if pa.types.is_struct(kind) else [kind.value_type] if _is_list(kind) else []
    return isinstance(kind, pa.JsonType) or any(map(_holds_json, inner))


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _decoded(value: Any, kind: pa.DataType) -> Any:
    if value is None or not _holds_json(kind):
        return value
    if isinstance(value, dict):
        return {field.name: _decoded(value[field.name], field.type) for field in kind}
    if isinstance(value, list):
        return [_decoded(one, kind.value_type) for one in value]
    try:
        return json.loads(value, object_hook=Whole)
    except ValueError:  # the type promises JSON, and no writer has to keep that
        return value
