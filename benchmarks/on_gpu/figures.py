"""Figures as lines of JSON, and tables made of them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TOLD_APART = ("precision", "method", "seq_len", "rows", "dtype", "num_answers", "answers", "prompt")
"""Settings that make another table."""


def append(path: Path, benchmark: str, contender: str, model: str, values: Mapping[str, tuple[Any, str]], **settings: Any) -> None:  # fmt: skip  # noqa: E501
    """A line a metric; `values` are (value, unit) by name."""
    with path.open("a") as file:
        for name, (value, unit) in values.items():
            row = {"benchmark": benchmark, "contender": contender, "model": model, "metric": name, "value": value}
            file.write(json.dumps(row | {"unit": unit, "settings": settings}) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """What is there so far; a line that was cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def tables(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: a table for each benchmark, model and size, a line a contender, a column a metric."""
    grouped: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        apart = [f"{name} {row['settings'][name]}" for name in TOLD_APART if name in row["settings"]]
        key = (row["benchmark"], ", ".join([row["model"], *apart]))
        unit = f" ({row['unit']})" if row["unit"] else ""
        grouped.setdefault(key, {}).setdefault(row["contender"], {})[row["metric"] + unit] = shown(row["value"])
    parts = []
    for (benchmark, title), contenders in grouped.items():
        columns = list(dict.fromkeys(name for figures in contenders.values() for name in figures))
        lines = [f"### {benchmark}: {title}", "", f"| | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
        for name, figures in contenders.items():
            lines.append(f"| {name} | {' | '.join(figures.get(column, '') for column in columns)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def shown(value: Any) -> str:
    """A number as a table has it: four digits, or all before the point."""
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
