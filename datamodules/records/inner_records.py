"""Records that lie within one object, as in `{"data": [...]}`, and how to take them out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datamodules.sources.units import Record

DEEPEST = 3
MOST_NAMED = 3


def inner_records(records: list[Record], path: str) -> str:
    """Words to add to a message about records that make no sense: where others lie within the only one; else none."""
    found = list(_arrays(records[0], "", DEEPEST)) if len(records) == 1 else []
    if not found:
        return ""
    named = " and ".join(f"{where.lstrip('.')} ({count:,} {what})" for where, count, what in found[:MOST_NAMED])
    where, _, what = found[0]
    take = f"{where}[]" if what == "records" else f"{where}[] | {{text: .}}"
    return f". It is one object, which holds the arrays {named}: take one out with `jq -c '{take}' {path} > data.jsonl`"


def _arrays(value: Any, where: str, depth: int) -> Iterator[tuple[str, int, str]]:
    """The path of each list in an object as `jq` writes it, how many things it holds, and what they are."""
    for name, inner in value.items() if depth and isinstance(value, dict) else ():
        here = f"{where}.{name}" if str(name).isidentifier() else f'{where or "."}["{name}"]'
        if isinstance(inner, list) and inner and isinstance(inner[0], dict | str):
            yield here, len(inner), "records" if isinstance(inner[0], dict) else "texts"
        yield from _arrays(inner, here, depth - 1)
