"""What quantization did, as a table, a JSON file, a picture, and on W&B."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from callbacks.monitoring.measurement import text_table
from callbacks.plotting import BLUE, GREEN, INK, RED, new_figure, save_figure, style
from callbacks.quantization.choice import Measured
from callbacks.trainer_parts import wandb_loggers
from llm_lightning_safety.files import write_text

HEADER = (
    "", "perplexity", "change", "KL", "same top token", "MB on disk", "MB in memory", "prefill tokens/s",
    "decode tokens/s",
)  # fmt: skip
ORIGINAL, KEPT, REFUSED = BLUE, GREEN, RED


def table_rows(original: Measured, candidates: Sequence[Measured]) -> list[list[str]]:
    """The cells of the table below `HEADER`, the original first."""
    rows = []
    for each in (original, *candidates):
        quality, is_original = each.quality, each is original
        rows.append(
            [
                each.name,
                f"{quality.perplexity:,.2f}" if quality.perplexity < 1e6 else f"{quality.perplexity:.1e}",
                "" if is_original else f"{each.increase_over(original):+.1%}",
                "" if quality.kl is None else f"{quality.kl:.4f}",
                "" if quality.top_token_agreement is None else f"{quality.top_token_agreement:.1%}",
                f"{each.disk_bytes / 1e6:,.1f}",
                f"{each.memory_bytes / 1e6:,.1f}",
                f"{each.speed.prefill_tokens_per_s:,.0f}",
                f"{each.speed.decode_tokens_per_s:,.1f}",
            ]
        )
    return rows


def as_text(original: Measured, candidates: Sequence[Measured], notes: Mapping[str, str]) -> str:
    """The table, and below it a line for each scheme with something to say."""
    lines = [text_table(HEADER, table_rows(original, candidates))]
    lines += [f"{name}: {note}." for name, note in notes.items() if note]
    return "\n".join(lines)


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Replace the file by one rename."""
    write_text(path, json.dumps(report, indent=2) + "\n")


def draw(path: Path, original: Measured, candidates: Sequence[Measured], refused: Sequence[str]) -> None:
    """Bytes on disk against perplexity, both logarithmic, a point for each network whose loss is finite."""
    figure = new_figure(7, 4.4)
    axes = figure.add_subplot()
    shown = [each for each in (original, *candidates) if math.isfinite(each.quality.loss)]
    for each in shown:
        color = ORIGINAL if each is original else REFUSED if each.name in refused else KEPT
        x, y = each.disk_bytes / 1e6, each.quality.perplexity
        axes.plot(x, y, "o", color=color, markersize=7)
        axes.annotate(each.name, (x, y), textcoords="offset points", xytext=(7, 5), color=INK, fontsize=9)
    axes.axhline(original.quality.perplexity, color=ORIGINAL, linewidth=0.8, linestyle=":")
    set_axes(axes, shown)
    save_figure(figure, path)


def set_axes(axes: Any, shown: Sequence[Measured]) -> None:
    """Bytes on disk to the right and perplexity upwards, both logarithmic, with ticks at the ends alone."""
    axes.set(xscale="log", yscale="log", xlabel="MB on disk", ylabel="perplexity")
    axes.margins(0.15)
    axes.minorticks_off()
    for axis, values in (
        (axes.xaxis, [each.disk_bytes / 1e6 for each in shown]),
        (axes.yaxis, [each.quality.perplexity for each in shown]),
    ):
        axis.set_ticks(sorted({float(f"{value:.2g}") for value in (min(values), max(values))}))
        axis.set_major_formatter("{x:,g}")
    style(axes)


def log_to_wandb(
    trainer: Trainer, original: Measured, candidates: Sequence[Measured], kept: Measured | None, picture: Path
) -> None:
    """The table, the picture, and what was kept in numbers, on each W&B logger."""
    figures = kept.as_dict() if kept else {}
    numbers = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    data = [[each.name, *each.as_dict().values()] for each in (original, *candidates)]
    for logger in wandb_loggers(trainer):
        logger.log_metrics({f"quantization/{name}": value for name, value in numbers.items()})
        logger.log_table("quantization/schemes", columns=["scheme", *original.as_dict()], data=data)
        logger.log_image("quantization/size_and_perplexity", [str(picture)])
