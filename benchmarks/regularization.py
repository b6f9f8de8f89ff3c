"""What keeps a small network from learning a small corpus by heart.

    python benchmarks/regularization.py --json benchmarks/results/regularization.jsonl

A Llama of a million weights learns 60 pages of the documentation of Python's library for 12 epochs, at a constant
learning rate, alone and with one remedy after another, and is measured each epoch on pages that it never sees. The best
loss on the way is what early stopping would keep; the last one is what over-fitting makes of it. Three seeds take some
20 minutes of one core.
"""

import argparse
import json
import statistics
import sys
import tempfile
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from transformers import LlamaConfig

from benchmarks.runner import machine
from callbacks import LayerDrop, NEFTune, StochasticDepth
from datamodules import TextDataModule
from datamodules.corpora.python_docs import documents
from llm_lightning.models.backbone import Backbone
from llm_lightning.modules import CausalPretraining
from llm_lightning.modules.schedule import Schedule

PAGES, HELD_OUT, EPOCHS, SEQ_LEN = 60, 30, 12, 256
LLAMA = {
    "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": SEQ_LEN, "tie_word_embeddings": True,
}  # fmt: skip
REMEDIES: dict[str, dict[str, Any]] = {
    "none": {},
    "dropout 0.2": {"dropout": 0.2},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "NEFTune 5": {"callback": NEFTune(5)},
    "NEFTune 15": {"callback": NEFTune(15)},
    "stochastic depth 0.2": {"callback": StochasticDepth(0.2)},
    "layer drop 0.2": {"callback": LayerDrop(0.2)},
    "dropout 0.2, smoothing 0.1": {"dropout": 0.2, "label_smoothing": 0.1},
}


class Losses(Callback):
    """The validation loss of each epoch."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.found.append(float(trainer.callback_metrics["val/loss"]))


def losses(folder: Path, seed: int, remedy: dict[str, Any]) -> list[float]:
    """Of each epoch, of a run."""
    seed_everything(seed)
    decay = remedy.get("weight_decay", 0.1)
    module = CausalPretraining(
        Backbone(config=LlamaConfig(**LLAMA), dropout=remedy.get("dropout", 0.0)),
        optimizer=lambda params: torch.optim.AdamW(params, lr=2e-3, weight_decay=decay, fused=True),
        schedule=Schedule(kind="constant", warmup=20),
        label_smoothing=remedy.get("label_smoothing", 0.0),
    )
    data = TextDataModule(
        str(folder / "train.jsonl"), val_path=str(folder / "val.jsonl"), vocab_size=2048, seq_len=SEQ_LEN, batch_size=8,
        seed=seed, cache_dir=str(folder / "cache"),
    )  # fmt: skip
    found = Losses()
    more = [remedy["callback"]] if "callback" in remedy else []
    trainer = Trainer(
        max_epochs=EPOCHS, callbacks=[found, *more], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(module, data)
    return found.found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    pages = [text[:4000] for text in islice(documents(), PAGES + HELD_OUT)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, texts in (("train", pages[HELD_OUT:]), ("val", pages[:HELD_OUT])):
            (folder / f"{part}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        for remedy, settings in REMEDIES.items():
            runs = [losses(folder, seed, settings) for seed in args.seeds]
            best, last = [min(run) for run in runs], [run[-1] for run in runs]
            at = [run.index(min(run)) + 1 for run in runs]
            print(
                f"{remedy:28} best {statistics.fmean(best):.4f} ({min(best):.4f} to {max(best):.4f}) in epoch {at}, "
                f"last {statistics.fmean(last):.4f}",
                flush=True,
            )
            if args.json is not None:
                row = {"benchmark": "regularization", "remedy": remedy, "seeds": args.seeds, "losses": runs}
                with args.json.open("a") as file:
                    file.write(json.dumps(row | {"settings": machine("cpu")}) + "\n")


if __name__ == "__main__":
    main()
