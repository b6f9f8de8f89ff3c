"""How far a model's confidence can be trusted, as a picture."""

import json
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from callbacks.monitoring.curves import GRID, INK, TRAIN, VALIDATION
from callbacks.phase import is_rehearsal
from llm_lightning_safety.files import atomic_file, write_text


class Reliability(Callback):
    """Draws `reliability.png`, and writes its numbers to `reliability.json`, after each validation of a LightningModule
    that has a `reliability()`: bins with `confidence`, `accuracy` and `num_pairs`, and an `ece`. Others are left alone.
    """

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured = getattr(pl_module, "reliability", None)
        if not trainer.is_global_zero or trainer.sanity_checking or is_rehearsal(trainer) or not callable(measured):
            return
        bins: Any = measured()
        if bins is None:
            return
        folder = Path(trainer.default_root_dir)
        try:
            write_text(folder / "reliability.json", json.dumps(bins._asdict()))
            draw_reliability(bins, folder / "reliability.png")
        except OSError as error:
            warnings.warn(f"The reliability diagram was not drawn: {error}", stacklevel=2)


def draw_reliability(bins: Any, picture: Path) -> None:
    """Draws accuracy against confidence, with the number of pairs of each bin below.

    Args:
        bins: `confidence`, `accuracy` and `num_pairs` of each, and the `ece`.
        picture: The PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    diagram, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    diagram.plot([0.5, 1], [0.5, 1], color=INK, linewidth=0.8, linestyle="--", label="calibrated")
    diagram.plot(
        bins.confidence, bins.accuracy, color=VALIDATION, linewidth=1.6, marker="o", markersize=4, label="model"
    )
    diagram.set_title(
        f"how often right (expected calibration error {bins.ece:.3f})", fontsize=10, loc="left", color=INK
    )
    diagram.legend(frameon=False, fontsize=9)
    counts.bar(bins.confidence, bins.num_pairs, width=0.03, color=TRAIN)
    counts.set_title("pairs", fontsize=9, loc="left", color=INK)
    counts.set_xlabel("probability that the model gives to its choice")
    for axes in (diagram, counts):
        axes.set_xlim(0.48, 1.02)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8, colors=INK, length=0)
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    with atomic_file(picture) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
