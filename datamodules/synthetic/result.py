"""The finished records as parquet, in the shape that the DataModule they are for reads."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from datamodules.cache import say_damaged
from datamodules.synthetic.candidate import Candidate
from llm_lightning_safety.files import atomic_file
from llm_lightning_safety.redaction import redact
from llm_lightning_safety.seals import note_of, read_json, write_json

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
PROVENANCE = pa.struct(
    [
        ("generator", pa.string()),
        ("seed_ids", pa.list_(pa.string())),
        ("model", pa.string()),
        ("prompt", pa.string()),
        ("parameters", pa.string()),  # JSON
    ]
)
# What is read of a record comes first; the rest says where it is from.
ORIGIN = [("label", pa.string()), ("scores", pa.map_(pa.string(), pa.float64())), ("provenance", PROVENANCE)]
CONVERSATIONS = pa.schema([("id", pa.string()), ("messages", MESSAGES), *ORIGIN])
PAIRS = pa.schema(
    [("id", pa.string()), ("messages", MESSAGES), ("chosen", pa.string()), ("rejected", pa.string()), *ORIGIN]
)
ROWS_AT_ONCE = 1024
KEY = b"llm_lightning.key"


def write_result(path: Path, candidates: Iterator[Candidate], pairs: bool, key: str) -> int:
    """Write the records, streaming; returns how many there are.

    Args:
        pairs: whether they have a rejected response, to be written as `PreferenceDataModule` reads it.
        key: names what they were made from; `key_of_result` reads it again.
    """
    import pyarrow.parquet as pq  # where it is used: it takes a while

    schema = (PAIRS if pairs else CONVERSATIONS).with_metadata({KEY: key.encode()})
    count = 0
    with atomic_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        while rows := [_row(candidate, pairs) for candidate in itertools.islice(candidates, ROWS_AT_ONCE)]:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
            count += len(rows)
    write_json(_seal_of(path), {"key": key, "file": note_of(path)})
    return count


def key_of_result(path: Path) -> str | None:
    """The key of a result; None where there is none, or none as it was written, which a line then says."""
    try:
        seal = read_json(_seal_of(path))
        if seal["file"] == note_of(path):
            return seal["key"]
    except (OSError, ValueError):
        pass
    say_damaged(path, "filtered records")
    return None


def _seal_of(path: Path) -> Path:
    return path.with_suffix(".seal.json")


def _row(candidate: Candidate, pairs: bool) -> dict[str, Any]:
    provenance = asdict(candidate.provenance)
    provenance["model"] = redact(provenance["model"])
    provenance["parameters"] = json.dumps(provenance["parameters"])
    messages: list[Any] = candidate.messages
    row: dict[str, Any] = {"id": candidate.id, "label": candidate.label, "provenance": provenance}
    row["scores"] = list(candidate.scores.items())
    if pairs:
        messages, row["chosen"], row["rejected"] = messages[:-1], candidate.answer, candidate.rejected
    return row | {"messages": messages}
