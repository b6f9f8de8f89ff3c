"""A run's curves as a picture."""

import csv
import math
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from callbacks.phase import is_rehearsal
from callbacks.plotting import TRAIN, VALIDATION, new_figure, save_figure, set_legend, set_title, style

Curve = tuple[list[float], list[float]]

PANELS = {
    "KL to the reference": "train/kl",
    "completion length": "rollout/completion_length",
    "learning rate": "train/lr",
    "gradient norm": "train/grad_norm",
    "tokens/s": "throughput/tokens_per_s",
}


class Curves(Callback):
    """Draws `curves.png` from `metrics.csv` in the run folder when fit ends.

    Args:
        metrics_file: The file to draw from; `metrics.csv` in the run folder if not given. Without it nothing is drawn.
    """

    def __init__(self, metrics_file: str | Path | None = None) -> None:
        self.metrics_file = metrics_file

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(trainer.default_root_dir)
        metrics_file = Path(self.metrics_file or folder / "metrics.csv")
        if not trainer.is_global_zero or is_rehearsal(trainer) or not metrics_file.exists():
            return
        try:
            draw_curves(metrics_file, folder / "curves.png")
        except OSError as error:
            warnings.warn(f"The curves were not drawn: {error}", stacklevel=2)


def read_metrics(metrics_file: Path) -> list[dict[str, float]]:
    """Rows of a metrics file as numbers, by name; empty fields and a torn last line are left out."""
    text = metrics_file.read_text(encoding="utf-8")
    header, *rows = csv.reader(text[: text.rfind("\n") + 1].splitlines()) if "\n" in text else [[]]
    whole = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
    return [{name: float(value) for name, value in row.items() if value} for row in whole]


def draw_curves(metrics_file: Path, picture: Path) -> None:
    """Draws losses (or rewards, where there are some) against tokens, and beside them what else tells how it goes.

    Args:
        metrics_file: CSV with `step`, optionally `tokens`, and the metrics that modules and callbacks log.
        picture: The PNG to write.
    """
    rows = read_metrics(metrics_file)
    panels = {title: curve for title, name in PANELS.items() if (curve := _curve(rows, name))[0]}
    figure = new_figure(10, 4.6)
    grid = figure.add_gridspec(max(len(panels), 1), 2, width_ratios=(2.4, 1))
    loss = figure.add_subplot(grid[:, 0] if panels else grid[:, :])
    _draw_losses(loss, rows, "reward" if any("train/reward" in row for row in rows) else "loss")
    label = "tokens" if any("tokens" in row for row in rows) else "steps"
    loss.set_xlabel(label)
    for i, (title, (x, y)) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[i, 1], sharex=loss)
        axes.plot(x, y, color=TRAIN, linewidth=1.2)
        axes.set_ylim(0, 1.08 * max(y) or None)
        set_title(axes, title, size=9)
        _style(axes)
        if i < len(panels) - 1:
            axes.tick_params(labelbottom=False)
        else:
            axes.set_xlabel(label)
    save_figure(figure, picture)


def _draw_losses(axes: Any, rows: list[dict[str, float]], name: str) -> None:
    x, y = _curve(rows, f"train/{name}")
    axes.plot(x, y, color=TRAIN, linewidth=0.8, alpha=0.45)
    axes.plot(x, _smoothed(y), color=TRAIN, linewidth=1.6, label="train")
    x_val, y_val = _curve(rows, f"val/{name}")
    axes.plot(x_val, y_val, color=VALIDATION, linewidth=1.6, marker="o", markersize=3.5, label="validation")
    if y_val:
        best = (max if name == "reward" else min)(range(len(y_val)), key=y_val.__getitem__)
        axes.annotate(
            f"{y_val[best]:.3f}",
            (x_val[best], y_val[best]),
            textcoords="offset points",
            xytext=(0, 9),
            ha="center",
            color=VALIDATION,
            fontsize=9,
        )
    # The first steps from random weights would flatten all the rest.
    begin = 0.03 * max([*x, *x_val, 0.0]) if name == "loss" else -1
    settled = [loss for tokens, loss in zip(x + x_val, y + y_val, strict=True) if tokens > begin]
    if margin := 0.05 * (max(settled) - min(settled)) if settled else 0.0:
        axes.set_ylim(min(settled) - margin, max(settled) + margin)
    set_title(axes, name)
    set_legend(axes)
    _style(axes)


def _style(axes: Any) -> None:
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if axes.get_ylim()[1] >= 1000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    style(axes)


def _curve(rows: list[dict[str, float]], name: str) -> Curve:
    """x (tokens, or steps where none were logged) and y of a metric, where it is a finite number."""
    points = [
        (x, row[name]) for x, row in zip(_x_axis(rows), rows, strict=True) if math.isfinite(row.get(name, math.nan))
    ]
    return [x for x, _ in points], [y for _, y in points]


def _x_axis(rows: list[dict[str, float]]) -> list[float]:
    known = [(row["step"], row["tokens"]) for row in rows if "tokens" in row]
    if not known:
        return [row["step"] for row in rows]
    import numpy as np

    steps, tokens = zip((-1.0, 0.0), *known, strict=True)
    return [float(x) for x in np.interp([row["step"] for row in rows], steps, tokens)]


def _smoothed(values: list[float]) -> list[float]:
    """Mean over a window around each point, a fiftieth of the run to each side; a trailing mean would lag behind."""
    reach = len(values) // 50
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
