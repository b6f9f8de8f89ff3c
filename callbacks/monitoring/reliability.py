"""How far a model's confidence can be trusted, as a picture."""

import json
import warnings
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from callbacks.contract import MeasuresReliability, ReliabilityBins, offered
from callbacks.phase import is_rehearsal
from callbacks.plotting import INK, TRAIN, VALIDATION, new_figure, save_figure, set_legend, set_title, style
from llm_lightning_safety.files import write_text


class Reliability(Callback):
    """Draws `reliability.png`, and writes its numbers to `reliability.json`, after each validation of a LightningModule
    that `MeasuresReliability`. Others are left alone.
    """

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measuring = offered(pl_module, MeasuresReliability)
        if measuring is None or not trainer.is_global_zero or trainer.sanity_checking or is_rehearsal(trainer):
            return
        bins = measuring.reliability()
        if bins is None:
            return
        folder = Path(trainer.default_root_dir)
        try:
            write_text(folder / "reliability.json", json.dumps(bins._asdict()))
            draw_reliability(bins, folder / "reliability.png")
        except OSError as error:
            warnings.warn(f"The reliability diagram was not drawn: {error}", stacklevel=2)


def draw_reliability(bins: ReliabilityBins, picture: Path) -> None:
    """Draws accuracy against confidence, with the number of pairs of each bin below.

    Args:
        bins: Of the last validation.
        picture: The PNG to write.
    """
    figure = new_figure(5, 5.6)
    diagram, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    diagram.plot([0.5, 1], [0.5, 1], color=INK, linewidth=0.8, linestyle="--", label="calibrated")
    diagram.plot(
        bins.confidence, bins.accuracy, color=VALIDATION, linewidth=1.6, marker="o", markersize=4, label="model"
    )
    set_title(diagram, f"how often right (expected calibration error {bins.ece:.3f})", size=10)
    set_legend(diagram)
    counts.bar(bins.confidence, bins.num_pairs, width=0.03, color=TRAIN)
    set_title(counts, "pairs", size=9)
    counts.set_xlabel("probability that the model gives to its choice")
    for axes in (diagram, counts):
        axes.set_xlim(0.48, 1.02)
        style(axes)
    save_figure(figure, picture)
