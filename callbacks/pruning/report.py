"""What pruning cost and gave: figures of the dense and the pruned network, as a table and a picture."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from callbacks.artifacts.random_state import generators_kept
from callbacks.monitoring.measurement import Quality, measure_quality, measure_speed, text_table, validation_batches
from callbacks.network import base_network
from callbacks.plotting import BLUE, RED, new_figure, save_figure, set_legend, set_title, style
from callbacks.pruning.weights import reduce_sum

PROMPT_TOKENS = 256
COLUMNS = {
    "perplexity": ("perplexity", "{:,.2f}"),
    "parameters": ("parameters", "{:,.0f}"),
    "nonzero": ("not zero", "{:,.0f}"),
    "bytes": ("MB", "{:,.1f}"),
    "prefill_tokens_per_s": ("prefill tokens/s", "{:,.0f}"),
    "decode_tokens_per_s": ("decode tokens/s", "{:,.1f}"),
}
Figures = dict[str, float]


def measure(trainer: Trainer, model: Any, num_batches: int) -> Figures:
    """Figures of the network as it is, the same on every rank; random numbers are drawn from copies.

    Args:
        trainer: in a fit.
        model: with all its weights on this rank.
        num_batches: validation batches, of each rank, for the perplexity; without validation data, or without a
            language head, there is none.
    """
    network = base_network(model)
    device = next(network.parameters()).device
    weights = [p for name, p in network.named_parameters() if "lora_" not in name]
    figures = {
        "parameters": float(sum(p.numel() for p in weights)),
        "nonzero": float(sum(int(p.count_nonzero()) for p in weights)),
        "bytes": float(sum(p.numel() * p.element_size() for p in weights)),
    }
    if network.get_output_embeddings() is None:
        return figures
    with generators_kept(device), trainer.precision_plugin.forward_context():
        batches = validation_batches(trainer, num_batches) if trainer.enable_validation else []
        batches = [batch for batch in batches if "labels" in batch and "input_ids" in batch]
        prompt = torch.arange(PROMPT_TOKENS)[None] % network.config.get_text_config().vocab_size
        if batches:
            quality = measure_quality(model, batches)
            sums = torch.tensor([quality.loss * quality.num_tokens, quality.num_tokens], dtype=torch.float64)
            nll, tokens = reduce_sum(sums.to(device)).tolist()
            figures["perplexity"] = Quality(nll / tokens, int(tokens)).perplexity
            prompt = batches[0]["input_ids"][:1, :PROMPT_TOKENS]
        if trainer.is_global_zero:
            speed = measure_speed(model, prompt)
            figures["prefill_tokens_per_s"] = speed.prefill_tokens_per_s
            figures["decode_tokens_per_s"] = speed.decode_tokens_per_s
    return figures


def table(dense: Figures, pruned: Figures) -> str:
    """Two rows; a figure that one of them lacks is left out."""
    names = [name for name in COLUMNS if name in dense and name in pruned]
    rows = []
    for label, figures in (("dense", dense), ("pruned", pruned)):
        values = {**figures, "bytes": figures["bytes"] / 1e6}
        rows.append([label, *(COLUMNS[name][1].format(values[name]) for name in names)])
    return text_table(["", *(COLUMNS[name][0] for name in names)], rows)


def draw(picture: Path, points: list[list[float]], limit: float) -> None:
    """Validation loss against sparsity, and sparsity over the steps.

    Args:
        picture: the PNG to write.
        points: of each validation its step, sparsity and loss.
        limit: the guard's, not a number for none.
    """
    from matplotlib.ticker import PercentFormatter

    figure = new_figure(10, 4)
    against, over = figure.subplots(1, 2)
    steps, sparsities, losses = zip(*points, strict=True)
    against.plot(sparsities, losses, color=RED, linewidth=1.4, marker="o", markersize=3.5)
    if math.isfinite(limit):
        against.axhline(limit, color=BLUE, linewidth=1.2, linestyle="--", label="guard's limit")
        set_legend(against)
    over.plot(steps, sparsities, color=RED, linewidth=1.4, marker="o", markersize=3.5)
    against.xaxis.set_major_formatter(PercentFormatter(1))
    over.yaxis.set_major_formatter(PercentFormatter(1))
    for axes, title, label in (
        (against, "validation loss against sparsity", "sparsity"),
        (over, "sparsity", "steps"),
    ):
        set_title(axes, title)
        axes.set_xlabel(label)
        style(axes)
    save_figure(figure, picture)
