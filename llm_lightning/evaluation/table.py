"""The scores of an evaluation as a table for the terminal."""

import math

from llm_lightning.evaluation.evaluate import Outcome

HEADINGS = ("task", "score", "reading", "value", "95 % interval", "items", "cut off", "not read")


def table(outcome: Outcome, num_cut: int = 0) -> str:
    """A line for each score.

    Args:
        outcome: of an evaluation.
        num_cut: prompts that the network's context had no room for.
    """
    lines = [HEADINGS]
    for name, task in outcome.tasks.items():
        for score in task["scores"]:
            lines.append(
                (
                    name,
                    score["metric"],
                    "" if score["reading"] == "none" else score["reading"],
                    _number(score["value"]),
                    _interval(score["low"], score["high"]),
                    str(task["num_items"]),
                    _share(task["truncated"], task["num_items"]),
                    _share(score["unparsed"], task["num_items"]),
                )
            )
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    written = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    ]
    written.insert(1, "  ".join("-" * width for width in widths))
    if num_cut:
        written.append(f"{num_cut} prompts were longer than the model's context and were cut at their beginning.")
    return "\n".join(written)


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) or math.isnan(high) else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) >= 10 else f"{value:.4f}"


def _share(count: int | None, total: int) -> str:
    return "" if count is None else f"{100 * count / total:.1f} %"
