"""What an evaluation left in its folder: read and checked, as a stranger may have made it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_lightning.errors import UserError
from llm_lightning_safety.files import open_unlinked, parse_json, read_text

RESULTS, ITEMS = "results.json", "items.parquet"
FORMAT = 1

MOST_BYTES = 2**24
"""Of results.json; most of it are first prompts."""

MOST_ITEM_BYTES = 2**30
"""Of items.parquet, packed and unpacked: its answers are not read, and count all the same."""

MOST_ROWS = 5_000_000
LONGEST_HASH = 128

NULL = type(None)
TASK = {
    "num_items": (int,), "output": (str,), "first_prompt": (str,), "max_new_tokens": (int, NULL),
    "truncated": (int, NULL), "contaminated": (int, NULL), "too_short": (int, NULL), "scores": (list,),
}  # fmt: skip
SCORE = {
    "metric": (str,), "reading": (str,), "value": (int, float), "low": (int, float, NULL),
    "high": (int, float, NULL), "interval": (str,), "higher_is_better": (bool,), "unparsed": (int, NULL),
    "clean": (dict, NULL),
}  # fmt: skip
CLEAN = {"value": (int, float), "low": (int, float, NULL), "high": (int, float, NULL), "num_items": (int,)}
"""Of a score without contaminated items."""

COLUMNS = {"task": str, "item": int, "item_hash": str, "cluster": str, "metric": str, "reading": str, "value": float}


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Args:
        folder: where it lies.
        created: ISO time, "" where it is not told.
        command: that made it, None for one in the course of training.
        model: `path` and `fingerprint`.
        step, tokens: of training, where they are known.
        settings: with which tasks were asked.
        tasks: by name, as in results.json.
    """

    folder: Path
    created: str
    command: list[str] | None
    model: dict[str, Any]
    step: int | None
    tokens: int | None
    settings: dict[str, Any]
    tasks: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Items:
    """Scores of single items in one metric and reading of a task, each item once.

    Args:
        hashes: of the items' content (N,): they pair the items of two evaluations.
        values: scores (N,).
        clusters: what items share with others (N,); None where each stands for itself.
    """

    hashes: np.ndarray
    values: np.ndarray
    clusters: np.ndarray | None


def find_evaluations(folder: Path) -> list[Path]:
    """The evaluations of a run folder, or the folder itself where it is one; those by step first, in their order."""
    if _is_evaluation(folder):
        return [folder]
    room = folder / "evaluation"
    if room.is_symlink() or not room.is_dir():
        return []
    return sorted((each for each in room.iterdir() if _is_evaluation(each)), key=_place)


def read_evaluation(folder: Path) -> Evaluation:
    """Read and check `results.json`.

    Raises:
        UserError: it is not as an evaluation writes it; the message names the file and the field.
        OSError: it is a link, too large, or cannot be read.
    """
    path = folder / RESULTS
    text = read_text(path, MOST_BYTES)
    try:
        found = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): evaluate again, or take this folder away.") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        given = found.get("format") if isinstance(found, dict) else None
        raise UserError(f"{path}: format is {given!r}, and this version reads {FORMAT}: evaluate again.")
    optional = {"created": (str, NULL), "command": (list, NULL), "step": (int, NULL)}
    _check(path, "", found, optional | {"tokens": (int, NULL), "model": (dict, NULL)})
    _check(path, "", found, {"tasks": (dict,), "settings": (dict, NULL)})
    tasks = {name: _checked_task(path, name, task) for name, task in found["tasks"].items()}
    command = found.get("command")
    return Evaluation(
        folder=folder,
        created=found.get("created") or "",
        command=None if command is None else [str(word) for word in command],
        model=found.get("model") or {},
        step=found.get("step"),
        tokens=found.get("tokens"),
        settings=found.get("settings") or {},
        tasks=tasks,
    )


def read_items(folder: Path) -> dict[tuple[str, str, str], Items]:
    """The scores in `items.parquet` by task, metric and reading; answers are not read.

    Raises:
        UserError: it is not as an evaluation writes it; the message names the file and the column.
        OSError: it is a link or cannot be read.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = folder / ITEMS
    with open_unlinked(path, "rb") as file:
        try:
            table = parquet.ParquetFile(file)
            _check_size(path, table.metadata)
            _check_columns(path, table.schema_arrow)
            columns = table.read(list(COLUMNS)).to_pydict()
        except pa.ArrowException as error:
            raise UserError(f"{path} is damaged ({error}): evaluate again.") from error
    return _by_score(path, columns)


def newest_of_each_task(evaluations: list[Evaluation]) -> dict[str, Evaluation]:
    """For each task the evaluation that asked it last: of the highest step, then of the latest time."""
    newest: dict[str, Evaluation] = {}
    for each in sorted(evaluations, key=lambda e: (e.created, -1 if e.step is None else e.step)):
        newest |= dict.fromkeys(each.tasks, each)
    return newest


def _is_evaluation(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and (folder / RESULTS).is_file()


def _place(folder: Path) -> tuple[float, str]:
    name, _, step = folder.name.partition("=")
    return (float(step) if name == "step" and step.isdecimal() else math.inf), folder.name


def _checked_task(path: Path, name: str, task: Any) -> dict[str, Any]:
    """The results of a task; what may be missing is None."""
    place = f"tasks.{name}"
    if not isinstance(task, dict):
        raise UserError(f"{path}: {place} is {_kind(task)}, not the results of a task: evaluate again.")
    task = _completed(task, TASK)
    _check(path, place, task, TASK)
    if task["num_items"] < 0:
        raise UserError(f"{path}: {place}.num_items is {task['num_items']}: a task has no fewer than 0.")
    scores = []
    for i, score in enumerate(task["scores"]):
        where = f"{place}.scores.{i}"
        if not isinstance(score, dict):
            raise UserError(f"{path}: {where} is {_kind(score)}, not a score: evaluate again.")
        score = _completed(score, SCORE)
        _check(path, where, score, SCORE)
        if score["clean"] is not None:
            score["clean"] = _completed(score["clean"], CLEAN)
            _check(path, f"{where}.clean", score["clean"], CLEAN)
        scores.append(score)
    return task | {"scores": scores}


def _completed(found: dict[str, Any], fields: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    return {name: None for name, kinds in fields.items() if NULL in kinds} | found


def _check(path: Path, place: str, found: Mapping[str, Any], fields: Mapping[str, tuple[type, ...]]) -> None:
    for name, kinds in fields.items():
        value, field = found.get(name), f"{place}.{name}".lstrip(".")
        if name not in found and NULL not in kinds:
            raise UserError(f"{path}: {field} is missing: evaluate again.")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join("null" if kind is NULL else kind.__name__ for kind in kinds)
            raise UserError(f"{path}: {field} is {_kind(value)}, not {wanted}: evaluate again.")


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _check_size(path: Path, metadata: Any) -> None:
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if metadata.num_rows > MOST_ROWS or size > MOST_ITEM_BYTES or path.stat().st_size > MOST_ITEM_BYTES:
        raise UserError(
            f"{path} has {metadata.num_rows:,} rows and {size:,} bytes; at most {MOST_ROWS:,} rows and "
            f"{MOST_ITEM_BYTES:,} bytes are read."
        )


def _check_columns(path: Path, schema: Any) -> None:
    from pyarrow import types

    for name, kind in COLUMNS.items():
        if name not in schema.names:
            raise UserError(f"{path}: the column {name} is missing: evaluate again.")
        found = schema.field(name).type
        fits = {
            str: types.is_string(found) or types.is_large_string(found) or types.is_null(found),
            int: types.is_integer(found),
            float: types.is_floating(found),
        }[kind]
        if not fits:
            raise UserError(f"{path}: the column {name} holds {found}, not {kind.__name__}: evaluate again.")


def _by_score(path: Path, columns: dict[str, list[Any]]) -> dict[tuple[str, str, str], Items]:
    for name in ("task", "item_hash", "metric", "reading", "value"):
        if None in columns[name]:
            raise UserError(f"{path}: the column {name} has a row without a value: evaluate again.")
    if any(len(item_hash) > LONGEST_HASH for item_hash in columns["item_hash"]):
        raise UserError(f"{path}: the column item_hash has one of more than {LONGEST_HASH} characters: evaluate again.")
    rows: dict[tuple[str, str, str], dict[str, int]] = {}
    scores = zip(columns["task"], columns["metric"], columns["reading"], columns["item_hash"], strict=True)
    for i, (*score, item_hash) in enumerate(scores):
        # A set may hold an item twice: its later copies pair with nothing.
        rows.setdefault((score[0], score[1], score[2]), {}).setdefault(item_hash, i)
    values = np.asarray(columns["value"], float)
    return {key: _items(places, values, columns["cluster"]) for key, places in rows.items()}


def _items(places: dict[str, int], values: np.ndarray, clusters: list[str | None]) -> Items:
    numbers: dict[str, int] = {}
    own = []
    for i, place in enumerate(places.values()):
        cluster = clusters[place]
        own.append(-1 - i if cluster is None else numbers.setdefault(cluster, len(numbers)))
    is_clustered = len(set(own)) < len(own)
    return Items(np.array(list(places)), values[list(places.values())], np.array(own) if is_clustered else None)
