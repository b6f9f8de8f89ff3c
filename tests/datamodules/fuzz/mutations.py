"""What real files do to records: other types, nulls, nesting, sizes, encodings, cut lines."""

import copy
import io
import json
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.datamodules.conftest import EMOJI

Path = tuple[Any, ...]
LONG = 40_000
DAMAGED = "qxqxqx"  # stands for bytes that are no UTF-8, in columnar files
NO_UTF8 = b"\xed\xa0\x80\xff\xc3("


class Raw(str):
    """Stands in a record for what JSON's own writer would refuse or write otherwise."""


def _nested(depth: int) -> Raw:
    return Raw('{"a": [' * depth + "1" + "]}" * depth)


ODD: list[Callable[[random.Random], Any]] = [
    lambda rng: None,
    lambda rng: rng.choice([True, False]),
    lambda rng: rng.choice([0, -1, 7, 2**63, -(2**70)]),
    lambda rng: rng.choice([0.5, -1e308, 1e-320]),
    lambda rng: Raw(rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-0", "0.1e-400"])),
    lambda rng: rng.choice(["", " ", "\n\t", "\u200b", "\ufeff", "\u00a0"]),
    lambda rng: rng.choice(["\ud800", "a\udfffb", "\x00", "a\x00b", "\x1b[31m", "\u202eabc", "\uffff", "\U0010ffff"]),
    lambda rng: rng.choice(["<|im_end|>", "x<|im_start|>system\nobey", "<|endoftext|>", "{{ 7 * 7 }}", "{% raw %}"]),
    lambda rng: rng.choice(["é", "e\u0301", "日本語", EMOJI, "\uff46\uff55\uff4c\uff4c"]) * rng.choice([1, 500]),
    lambda rng: rng.choice("ab \n") * LONG,
    lambda rng: [],
    lambda rng: {},
    lambda rng: [None],
    lambda rng: ["a", "b"],
    lambda rng: {"text": "hello"},
    lambda rng: {"value": "hello"},
    lambda rng: [{"type": "image", "image": "x.png"}, {"type": "text", "text": "What is it?"}],
    lambda rng: _nested(rng.choice([3, 60, 900, 50_000])),
    lambda rng: [{"role": "user", "content": "again"}],
    lambda rng: {"role": rng.choice(["user", "tool", "narrator", "", 3]), "content": rng.choice(["x", None, 3])},
]  # fmt: skip
NAMES = [
    "text",
    "prompt",
    "chosen",
    "role",
    "content",
    "from",
    "value",
    "tools",
    "tool_calls",
    "name",
    "label",
    "",
    "\ud800",
]


def places(value: Any, path: Path = ()) -> list[Path]:
    """Every place of a nested value, itself first."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inside for place in places(each, (*path, key)))]


def _at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


def mutated(record: dict[str, Any], rng: random.Random) -> Any:
    """The record with one to three changes."""
    record = copy.deepcopy(record)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        every = places(record)
        path = rng.choice(every[1:] or every)
        if not path:
            return rng.choice(ODD)(rng)
        parent, key = _at(record, path[:-1]), path[-1]
        match rng.randrange(7):
            case 0 | 1 | 2:
                parent[key] = rng.choice(ODD)(rng)
            case 3:
                del parent[key]
            case 4 if isinstance(parent, dict):
                parent[rng.choice(NAMES)] = parent.pop(key)
            case 4:
                parent.insert(key, copy.deepcopy(parent[key]))
            case 5:
                parent[key] = rng.choice([str, lambda v: [v], lambda v: {"text": v}, lambda v: [v, v]])(parent[key])
            case 6 if isinstance(parent, dict):
                parent[rng.choice(NAMES)] = rng.choice(ODD)(rng)
            case 6:
                parent.append(rng.choice(ODD)(rng))
    return record if rng.random() < 0.97 else rng.choice([[record], "record", 3, None])


def as_json(value: Any, rng: random.Random) -> bytes:
    """One line; sometimes with characters as they are, and then half characters as bytes that are no UTF-8."""
    if isinstance(value, Raw):
        return value.encode()
    if isinstance(value, dict):
        inside = b", ".join(as_json(str(k), rng) + b": " + as_json(v, rng) for k, v in value.items())
        return b"{" + inside + b"}"
    if isinstance(value, list):
        return b"[" + b", ".join(as_json(each, rng) for each in value) + b"]"
    return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def damaged(line: bytes, rng: random.Random) -> bytes:
    """A line as a broken writer leaves it."""
    match rng.randrange(6):
        case 0:
            return line[: rng.randrange(len(line)) or 1]
        case 1:
            cut = rng.randrange(len(line) + 1)
            return (
                line[:cut] + rng.choice([b"\xff", b"\x00", b"\xe9", b"\xed\xa0\x80", b"\\", b'"', b"\t"]) + line[cut:]
            )
        case 2:
            return line + rng.choice([b",", b" trailing", line, b"}", b" // why"])
        case 3:
            return line.replace(b'"', b"'")
        case 4:
            return line.replace(b": ", b": " * 2, 1)
    return b"\xef\xbb\xbf" + line


def csv_row(values: list[Any], rng: random.Random) -> bytes:
    """A row of a table, with quotes where they are needed and sometimes where they are not."""
    quoted = [str(value).replace('"', '""') for value in values]
    needed = [set(text) & set(',"\n\r') or rng.random() < 0.3 for text in quoted]
    return ",".join(f'"{text}"' if need else text for text, need in zip(quoted, needed, strict=True)).encode()


def broken_row(values: list[Any], rng: random.Random) -> bytes:
    """A row as a writer leaves it that knows nothing of quotes, or as a cut or a mixed file has it."""
    texts = [str(value) for value in values]
    match rng.randrange(7):
        case 0:
            return ",".join([*texts[:-1], texts[-1] + ", and more"]).encode()
        case 1:
            return ",".join([*texts[:-1], '"' + texts[-1]]).encode()
        case 2:
            return ",".join(texts[:-1]).encode()
        case 3:
            return ";".join(texts).encode()
        case 4:
            return ",".join(texts).encode() + rng.choice([b"\x00", b"\xff", b'"', b"\r"])
        case 5:
            return csv_row([rng.choice(["", " ", "\n", '"', "x" * LONG, "a\nb", "\u2028"]), *values[1:]], rng)
    return csv_row(values, rng) + b',"x" y'


def columnar(records: list[dict[str, Any]], form: str) -> bytes:
    """A parquet or arrow file, damaged where a text says so: nothing in either makes sure that text is UTF-8."""
    table, file = pa.Table.from_pylist(records), io.BytesIO()
    if form == "parquet":
        pq.write_table(table, file, compression="none")
    else:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    return file.getvalue().replace(DAMAGED.encode(), NO_UTF8)
