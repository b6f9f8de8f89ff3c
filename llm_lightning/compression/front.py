"""Networks between which only a budget can choose, as a table and as a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from callbacks.monitoring.measurement import text_table
from callbacks.plotting import BLUE, GREEN, GRID, INK, RED, new_figure, save_figure, set_legend
from callbacks.quantization.choice import CompressionBudget, Measured
from callbacks.quantization.report import set_axes

HEADER = ("pruning", "scheme", "perplexity", "change", "MB on disk", "writes tokens/s", "")
COLORS = (INK, BLUE, RED, GREEN, "#b07cc6", "#e0a030", "#7f7f7f")


@dataclass(frozen=True)
class Candidate:
    """A network that was pruned, trained and quantized.

    Args:
        pruning: Its name.
        scheme: Of the quantization; `original` where there is none.
        measured: Its figures.
        folder: Where it is; None where its run did not keep it.
    """

    pruning: str
    scheme: str
    measured: Measured
    folder: Path | None


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other one beats in size or perplexity without losing in the other one, the smallest first."""
    found: list[Candidate] = []
    finite = [each for each in candidates if math.isfinite(each.measured.quality.loss)]
    for each in sorted(finite, key=lambda each: (each.measured.disk_bytes, each.measured.quality.loss)):
        if not found or each.measured.quality.loss < found[-1].measured.quality.loss:
            found.append(each)
    return found


def as_text(
    candidates: Sequence[Candidate], reference: Measured, budget: CompressionBudget, kept: Candidate | None
) -> str:
    """A line for each, the smallest first, and what speaks against it."""
    best, rows = front(candidates), []
    for each in sorted(candidates, key=lambda each: each.measured.disk_bytes):
        one = each.measured
        refusal = budget.refusal(one, reference)
        beaten = "" if each in best else "another one is smaller and better"
        rows.append(
            [
                each.pruning,
                each.scheme,
                f"{one.quality.perplexity:,.2f}" if one.quality.perplexity < 1e6 else f"{one.quality.perplexity:.1e}",
                f"{one.increase_over(reference):+.1%}" if one is not reference else "",
                f"{one.disk_bytes / 1e6:,.1f}",
                f"{one.speed.decode_tokens_per_s:,.1f}",
                "kept" if each is kept else f"refused: {refusal}" if refusal else beaten,
            ]
        )
    return text_table(HEADER, rows)


def draw(path: Path, candidates: Sequence[Candidate], kept: Candidate | None) -> None:
    """Bytes on disk against perplexity, both logarithmic: a colour for each pruning, the front as a line."""
    figure = new_figure(7.5, 4.8)
    axes = figure.add_subplot()
    line = [(each.measured.disk_bytes / 1e6, each.measured.quality.perplexity) for each in front(candidates)]
    axes.plot(*zip(*line, strict=True), color=GRID, linewidth=3, zorder=1)
    for number, pruning in enumerate(dict.fromkeys(each.pruning for each in candidates)):
        color = COLORS[number % len(COLORS)]
        label: str | None = pruning
        for each in candidates:
            if each.pruning == pruning and math.isfinite(each.measured.quality.loss):
                x, y = each.measured.disk_bytes / 1e6, each.measured.quality.perplexity
                axes.plot(x, y, "o", color=color, markersize=7, label=label, zorder=2)
                axes.annotate(each.scheme, (x, y), textcoords="offset points", xytext=(7, 5), color=INK, fontsize=8)
                label = None
                if each is kept:
                    axes.plot(x, y, "o", markersize=15, markerfacecolor="none", markeredgecolor=GREEN, zorder=3)
    set_axes(axes, [each.measured for each in candidates if math.isfinite(each.measured.quality.loss)])
    set_legend(axes)
    save_figure(figure, path)
