"""Which curves a report shows of its runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_lightning.report.chart import Chart, Line, draw, smoothed
from llm_lightning.report.run_folder import Run

Curve = tuple[np.ndarray, np.ndarray]

MOST_OTHERS = 60
"""Charts of metrics that nobody chose."""

SETTLED_FROM = 0.03


@dataclass(frozen=True)
class Panel:
    """A chart that most runs have.

    Args:
        title: what it shows.
        train, validation: metrics.
        is_smoothed: whether the curve of training is drawn as a mean over its neighbours.
        from_zero: whether the y axis begins at 0.
    """

    title: str
    train: str
    validation: str = ""
    is_smoothed: bool = False
    from_zero: bool = False


PANELS = (
    Panel("loss", "train/loss", "val/loss", is_smoothed=True),
    Panel("reward", "train/reward", "val/reward", is_smoothed=True),
    Panel("accuracy", "train/accuracy", "val/accuracy", is_smoothed=True),
    Panel("answer accuracy", "train/answer_accuracy", "val/answer_accuracy", is_smoothed=True),
    Panel("KL to the reference", "train/kl", is_smoothed=True),
    Panel("completion length", "rollout/completion_length", from_zero=True),
    Panel("learning rate", "train/lr", from_zero=True),
    Panel("gradient norm", "train/grad_norm", is_smoothed=True, from_zero=True),
    Panel("tokens/s", "throughput/tokens_per_s", from_zero=True),
)

CONSTANT = ("data/", "epoch", "tokens")
"""Metrics that are no curves."""


def chosen_charts(runs: Sequence[Run]) -> list[Chart]:
    """The charts that most runs have, and those of evaluations in the course of training."""
    panels = [*PANELS, *(Panel(name.removeprefix("eval/"), name) for name in _names(runs) if name.startswith("eval/"))]
    return [chart for panel in panels if (chart := _chart(runs, panel))]


def other_charts(runs: Sequence[Run]) -> list[Chart]:
    """A chart for each other metric that changes."""
    chosen = {name for panel in PANELS for name in (panel.train, panel.validation)}
    names = [n for n in _names(runs) if n not in chosen and not n.startswith((*CONSTANT, "eval/"))]
    charts: list[Chart] = []
    for name in names:
        if len(charts) == MOST_OTHERS:
            break
        if name.startswith("val/") and name.replace("val/", "train/", 1) in names:
            continue
        panel = Panel(name, name)
        if name.startswith("train/") and (validation := name.replace("train/", "val/", 1)) in names:
            panel = Panel(name.removeprefix("train/"), name, validation, is_smoothed=True)
        if _changes(runs, panel) and (chart := _chart(runs, panel)):
            charts.append(chart)
    return charts


def _names(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs if run.metrics for name in run.metrics.columns))


def _changes(runs: Sequence[Run], panel: Panel) -> bool:
    """Whether there is more to see than one number."""
    found = [run.metrics.curve(name)[1] for run in runs if run.metrics for name in (panel.train, panel.validation)]
    values = np.concatenate(found)
    return len(values) > 1 and bool((values != values[0]).any())


def _chart(runs: Sequence[Run], panel: Panel) -> Chart | None:
    over_tokens = all(run.metrics.has_tokens for run in runs if run.metrics)
    lines = [line for i, run in enumerate(runs) for line in _lines(run, i, panel, len(runs), over_tokens)]
    if not sum(len(line.x) for line in lines):
        return None
    settled_from = SETTLED_FROM if panel.title == "loss" else 0.0
    return draw(panel.title, "tokens" if over_tokens else "steps", lines, settled_from, panel.from_zero)


def _lines(run: Run, number: int, panel: Panel, num_runs: int, over_tokens: bool) -> list[Line]:
    """One run alone has a color for training and one for validation, several have one each."""
    if run.metrics is None:
        return []
    x, y = run.metrics.curve(panel.train, over_tokens)
    x_val, y_val = run.metrics.curve(panel.validation, over_tokens)
    if num_runs == 1:
        return _of_one((x, y), (x_val, y_val), panel)
    lines = []
    if len(x):
        is_behind, name = len(x_val) > 0, f"{run.name}, training" if len(x_val) else run.name
        y = smoothed(y) if panel.is_smoothed else y
        lines.append(Line("" if is_behind else run.name, x, y, number, "faint" if is_behind else "main", name))
    if len(x_val):
        lines.append(Line(run.name, x_val, y_val, number, "dotted", f"{run.name}, validation"))
    return lines


def _of_one(train: Curve, validation: Curve, panel: Panel) -> list[Line]:
    """Training as it was, pale, behind its mean, and validation."""
    lines = []
    (x, y), (x_val, y_val) = train, validation
    label = "training" if len(x_val) else panel.title
    if len(x):
        mean = smoothed(y) if panel.is_smoothed else y
        if (mean != y).any():
            lines.append(Line("", x, y, 0, "faint"))
        lines.append(Line(label, x, mean, 0, name=label))
    if len(x_val):
        lines.append(Line("validation", x_val, y_val, 1, "dotted", "validation"))
    return lines
