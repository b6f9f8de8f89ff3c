"""How right chosen answers are over the number of samples, by what `curve.json` holds; it may be a stranger's."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_lightning.report.chart import Chart, Line, draw
from llm_lightning.report.figures import number
from llm_lightning.report.settings import shown

COSTS = ("tokens", "seconds", "joules")
"""Of all samples of a prompt."""

MOST_CHOICES = 8
MOST_POINTS = 64


def answers(found: dict[str, Any]) -> dict[str, Any] | None:
    """For the template: a table with a row for each number of samples, and the picture; None for another form."""
    counts, right = _numbers(found.get("samples")), found.get("right")
    if counts is None or not isinstance(right, dict):
        return None
    read = {shown(name): _shares(points, len(counts)) for name, points in list(right.items())[:MOST_CHOICES]}
    shares = {name: points for name, points in read.items() if points is not None}
    measured = {name: _numbers(found.get(name)) for name in COSTS}
    costs = {name: each for name, each in measured.items() if each is not None and len(each) == len(counts)}
    if not shares:
        return None
    rows = []
    for place, count in enumerate(counts):
        each = [points[place] for points in shares.values()]
        cells = [number(values[place]) for values in costs.values()]
        rows.append((f"{count:g}", cells + [f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in each]))
    return {
        "columns": [*costs, *shares],
        "rows": rows,
        "num_prompts": shown(found.get("num_prompts")),
        "chart": _picture(costs.get("tokens", counts), "tokens" if "tokens" in costs else "samples", shares),
    }


def _picture(x: Sequence[float], x_label: str, shares: dict[str, Any]) -> Chart:
    order = np.argsort(x, kind="stable")
    lines = []
    for color, (name, points) in enumerate(shares.items()):
        values = np.array(points)[order]
        lines.append(Line(name, np.asarray(x)[order], values[:, 0], color, "dotted", name))
        lines += [Line("", np.asarray(x)[order], values[:, end], color, "faint") for end in (1, 2)]
    return draw("right answers", f"{x_label} a prompt", lines, from_zero=True)


def _numbers(values: Any) -> list[float] | None:
    if not isinstance(values, list) or not 0 < len(values) <= MOST_POINTS:
        return None
    if not all(isinstance(each, int | float) and not isinstance(each, bool) and 0 <= each < 1e15 for each in values):
        return None
    return [float(each) for each in values]


def _shares(points: Any, count: int) -> list[list[float]] | None:
    if not isinstance(points, list) or len(points) != count or not all(isinstance(each, dict) for each in points):
        return None
    each = [_numbers([point.get(name) for name in ("value", "low", "high")]) for point in points]
    found = [values for values in each if values is not None and max(values) <= 1]
    return found if len(found) == count else None
