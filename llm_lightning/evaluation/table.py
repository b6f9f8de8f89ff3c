"""The scores of an evaluation as a table for the terminal."""

import math
from typing import Any

from llm_lightning.evaluation.evaluate import Outcome

HEADINGS = ("task", "score", "reading", "value", "95 % interval", "items", "cut off", "not read")
OF_CONTAMINATION = ("contaminated", "value without", "95 % interval")


def table(outcome: Outcome, num_cut: int = 0) -> str:
    """A line for each score.

    Args:
        outcome: of an evaluation.
        num_cut: prompts that the network's context had no room for.
    """
    has_looked = any(task["contaminated"] is not None for task in outcome.tasks.values())
    lines = [HEADINGS + OF_CONTAMINATION * has_looked]
    for name, task in outcome.tasks.items():
        for score in task["scores"]:
            lines.append(_line(name, task, score) + _clean(task, score) * has_looked)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    written = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    written.insert(1, "  ".join("-" * width for width in widths))
    if num_cut:
        written.append(f"{num_cut} prompts were longer than the model's context and were cut at their beginning.")
    written += [
        f"{name}: {task['too_short']} of {task['num_items']} items are too short to be found in training data."
        for name, task in outcome.tasks.items()
        if task["too_short"]
    ]
    return "\n".join(written)


def _line(name: str, task: dict[str, Any], score: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        score["metric"],
        "" if score["reading"] == "none" else score["reading"],
        _number(score["value"]),
        _interval(score["low"], score["high"]),
        str(task["num_items"]),
        _share(task["truncated"], task["num_items"]),
        _share(score["unparsed"], task["num_items"]),
    )


def _clean(task: dict[str, Any], score: dict[str, Any]) -> tuple[str, ...]:
    clean = score["clean"]
    found = ("", "") if clean is None else (_number(clean["value"]), _interval(clean["low"], clean["high"]))
    return (_share(task["contaminated"], task["num_items"]), *found)


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) or math.isnan(high) else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) >= 10 else f"{value:.4f}"


def _share(count: int | None, total: int) -> str:
    return "" if count is None else f"{100 * count / total:.1f} %"
