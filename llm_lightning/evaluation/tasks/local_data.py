"""Files of a user as data of tasks: `custom_dataset: !function llm_lightning.evaluation.tasks.local_data.read`.

Nothing is downloaded or cached, and a missing file or column is told in words.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_lightning.errors import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt")
MOST_BYTES = 2**30
TEXT_CHARACTERS = 4000
"""Of one item, where a plain text is cut at line ends."""


class Rows(list[dict[str, Any]]):
    """Rows of a file, with what lm-eval asks of a `datasets.Dataset`."""

    @property
    def features(self) -> dict[str, None]:
        """The columns."""
        return dict.fromkeys(self[0]) if self else {}


class Splits(dict[str, Rows]):
    """Rows by split; one whose file is missing has none."""

    def __missing__(self, split: str) -> Rows:
        return Rows()


def read(
    *,
    task: str,
    files: Mapping[str, str],
    required: Sequence[str],
    header: Sequence[str] | None = None,
    data: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    **_: Any,
) -> Splits:
    """The rows of a task's files.

    Args:
        task: its name.
        files: by split, the name that its file has in the user's folder, with or without suffix.
        required: columns that the task reads.
        header: names of the columns where a .csv or .tsv has no first line of them.
        data: by task, the user's folder, or the file of the `test` split.
        columns: by name of a required column, what the user's file calls it.

    Raises:
        UserError: no data are given, a file cannot be read, or a column is missing.
    """
    if task not in (data or {}):
        raise UserError(f"The task {task} reads a file of yours: give it by --data {task}=FILE, or the folder with it.")
    assert data is not None
    given = Path(data[task]).expanduser()
    places = {"test": given} if given.is_file() else {split: _found(given, name) for split, name in files.items()}
    if places.get("test") is None:
        name = files["test"]
        raise UserError(
            f"--data {task}={given}: there is neither such a file, nor {name} ({', '.join(SUFFIXES)}) in it."
        )
    splits = Splits()
    for split, path in places.items():
        if path is not None:
            rows = (_named(row, columns or {}) for row in _rows(path, header))
            splits[split] = Rows(_checked(rows, path, required))
    if not splits["test"]:
        raise UserError(f"--data {task}={given}: {places['test']} has no rows.")
    return splits


def _found(folder: Path, name: str) -> Path | None:
    candidates = [folder / name, *(folder / f"{name}{suffix}" for suffix in (*SUFFIXES, ".jsonl.gz"))]
    return next((path for path in candidates if path.is_file()), None)


def _rows(path: Path, header: Sequence[str] | None) -> Iterator[Any]:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if f".{kind}" not in SUFFIXES:
        raise UserError(f"{path}: tasks read {', '.join(SUFFIXES)}, not .{kind}.")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{path} is no text in UTF-8: {error}.") from error
    if len(raw) > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES} bytes: an evaluation reads smaller files.")
    if kind == "txt":
        yield from ({"text": piece} for piece in _pieces(text))
    elif kind in ("csv", "tsv"):
        yield from csv.DictReader(io.StringIO(text), header, delimiter="\t" if kind == "tsv" else ",")
    elif kind == "json":
        yield from _json(path, text)
    else:
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield _parsed(path, line, f"line {number}")


def _json(path: Path, text: str) -> Iterator[Any]:
    found = _parsed(path, text, "it")
    if not isinstance(found, list):
        raise UserError(f"{path} holds no list of rows.")
    yield from found


def _parsed(path: Path, text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {place} is no JSON ({error}).") from error


def _pieces(text: str) -> Iterator[str]:
    lines: list[str] = []
    length = 0
    for line in text.splitlines(keepends=True):
        if lines and length + len(line) > TEXT_CHARACTERS:
            yield "".join(lines)
            lines, length = [], 0
        lines.append(line)
        length += len(line)
    if "".join(lines).strip():
        yield "".join(lines)


def _named(row: Any, columns: Mapping[str, str]) -> Any:
    if not isinstance(row, dict):
        return row
    return row | {wanted: row[own] for wanted, own in columns.items() if own in row}


def _checked(rows: Iterator[Any], path: Path, required: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: row {number} is a {type(row).__name__}, not a row with columns.")
        missing = [name for name in required if row.get(name) is None]
        if missing:
            there = ", ".join(map(str, row))
            raise UserError(
                f"{path}: row {number} has no column {missing[0]!r}; there are: {there}. If yours has another name, "
                f"give it by --columns {missing[0]}=NAME."
            )
        yield row
