"""Whether averages of weights are better than the last ones, and a soup better than what it is made of.

    python benchmarks/averages.py --json benchmarks/results/averages.jsonl
    python benchmarks/averages.py --model 9m --json benchmarks/results/averages.jsonl

For each seed a small Llama is trained on the documentation of Python's library, once at a constant learning rate and
once by a cosine: one of a million weights for 250 steps of 512 tokens, or the 9M shape (with a vocabulary of 2,048) for
60, in which it learns little yet. Their last weights, the exponential moving average and
the mean of the last quarter are measured on documents that none of them saw. Then four runs go on from the last weights
of the first, by other orders of the data and other learning rates: their greedy soup is chosen on some documents, and
measured on others. Differences are paired, by pieces of 256 tokens.

Three seeds take five to seven minutes of one core.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from transformers import LlamaConfig

from benchmarks.runner import machine
from callbacks import EMA, SWA
from datamodules import TextDataModule
from datamodules.corpora.python_docs import documents
from llm_lightning.evaluation.soup import HeldOut, Losses, make_soup
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.modules import CausalPretraining
from llm_lightning.modules.schedule import Schedule
from llm_lightning.rollouts import LocalEngine

SEQ_LEN, ROWS = 256, 2
PIECES = 24


@dataclass(frozen=True)
class Model:
    """A network and how long it is trained: at first, and for an ingredient of a soup."""

    config: dict[str, int]
    vocab_size: int
    lr: float
    steps: int
    more_steps: int


def llama(hidden_size: int, layers: int, heads: int, kv_heads: int, intermediate_size: int) -> dict[str, int]:
    return {
        "hidden_size": hidden_size, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": intermediate_size, "max_position_embeddings": SEQ_LEN,
    }  # fmt: skip


MODELS = {
    "1m": Model(llama(128, 4, 4, 2, 352), vocab_size=1024, lr=5e-3, steps=250, more_steps=40),
    "9m": Model(llama(256, 6, 8, 4, 704), vocab_size=2048, lr=1e-3, steps=60, more_steps=10),
}
INGREDIENTS = ((1, 1.0), (2, 0.3), (3, 3.0), (4, 1.0))
"""Order of the data of what a soup is made of, and its learning rate as a multiple of that of the run before."""


class Measured(Callback):
    """Averages beside a run, and the losses of all weights at its end.

    Args:
        averages: by name; they are no callbacks of the trainer, which has one of them at most.
        held_out: what is measured on.
    """

    def __init__(self, averages: dict[str, EMA | SWA], held_out: HeldOut) -> None:
        self.averages, self.held_out = averages, held_out
        self.losses: dict[str, Losses] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for each in self.averages.values():
            each.setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for each in self.averages.values():
            each.on_fit_start(trainer, pl_module)
            each.on_train_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        for each in self.averages.values():
            each.on_train_batch_end(trainer, pl_module, *args)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.losses["last"] = self.held_out.losses(pl_module.model)
        for name, each in self.averages.items():
            with each.in_place():
                self.losses[name] = self.held_out.losses(pl_module.model)


def write_texts(folder: Path) -> None:
    """Documents to learn from, to choose by and to report on: every tenth is not learned from."""
    parts: dict[str, list[str]] = {"learn": [], "choose": [], "report": []}
    for number, text in enumerate(documents()):
        parts["choose" if number % 20 == 0 else "report" if number % 20 == 10 else "learn"].append(text)
    for name, texts in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def train(
    model: Model, folder: Path, seed: int, schedule: Schedule, lr: float, start: Path | None, measured: list[Callback]
) -> CausalPretraining:
    """A run in this process, of which nothing is left but what it returns."""
    seed_everything(seed, verbose=False)
    shape = model.config | {"vocab_size": model.vocab_size}
    config = LlamaConfig(**shape, tie_word_embeddings=True)
    backbone = Backbone(path=str(start)) if start else Backbone(config=config)
    optimizer = partial(torch.optim.AdamW, lr=lr, weight_decay=0.1)
    module = CausalPretraining(backbone=backbone, optimizer=optimizer, schedule=schedule)
    data = TextDataModule(
        str(folder / "learn.jsonl"), tokenizer=str(start) if start else None,
        vocab_size=None if start else model.vocab_size, seq_len=SEQ_LEN, batch_size=ROWS, val_share=0, seed=seed,
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=model.more_steps if start else model.steps, max_epochs=-1,
        logger=False, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, use_distributed_sampler=False, gradient_clip_val=1.0,
        callbacks=measured,
    )  # fmt: skip
    trainer.fit(module, data)
    return module


def pieces(folder: Path, name: str, tokenizer: str) -> Iterator[Any]:
    """Short beginnings of held-out documents, one a document."""
    data = TextDataModule(str(folder / f"{name}.jsonl"), tokenizer=tokenizer)
    for document in islice(data.held_out_documents(), PIECES):
        yield document._replace(ids=document.ids[:SEQ_LEN])


def trained_tokenizer(folder: Path, model: Model) -> str:
    """The folder of the tokenizer that all runs share."""
    data = TextDataModule(str(folder / "learn.jsonl"), vocab_size=model.vocab_size, seq_len=SEQ_LEN, val_share=0)
    data.prepare_data()
    data.setup("fit")
    data.tokenizer.save_pretrained(folder / "tokenizer")
    return str(folder / "tokenizer")


def averages_of(model: Model, folder: Path, seed: int, held_out: HeldOut) -> Iterator[dict[str, Any]]:
    """Rows of the first table; the last weights of the run at a constant rate are kept."""
    for kind in ("cosine", "constant"):
        measured = Measured({"EMA": EMA(), "SWA": SWA(every_n_steps=3)}, held_out)
        schedule = Schedule(kind=kind, warmup=5, min_ratio=0.0)
        module = train(model, folder, seed, schedule, model.lr, None, [measured])
        for name, losses in measured.losses.items():
            yield {"seed": seed, "schedule": kind, "weights": name, **compared(measured.losses["last"], losses)}
    save_model_folder(module.model, module.tokenizer, folder / f"start-{seed}")


def soup_of(model: Model, folder: Path, seed: int, held_out: HeldOut) -> Iterator[dict[str, Any]]:
    """Rows of the second table: the ingredients, best first by the text to choose by, and the soup."""
    models = []
    for order, factor in INGREDIENTS:
        start, schedule = folder / f"start-{seed}", Schedule(kind="constant", warmup=0)
        module = train(model, folder, 100 * seed + order, schedule, factor * model.lr, start, [])
        models.append(folder / f"ingredient-{seed}-{order}")
        save_model_folder(module.model, module.tokenizer, models[-1])
    output = folder / f"soup-{seed}"
    tried = make_soup(models, output, lambda tokenizer: pieces(folder, "choose", tokenizer), lambda line: None)
    best = None
    for each in tried:
        losses = held_out.losses(LocalEngine(str(models[each.number])).network)
        best = best or losses
        order, factor = INGREDIENTS[each.number]
        yield {
            "seed": seed,
            "weights": f"order {order}, lr {factor * model.lr:g}",
            "kept": each.kept,
            **compared(best, losses),
        }
    yield {"seed": seed, "weights": "soup", **compared(best, held_out.losses(LocalEngine(str(output)).network))}


def compared(first: Losses, second: Losses) -> dict[str, Any]:
    """A loss, and how far it is from another one."""
    return {"loss": second.mean, "interval": second.interval, **first.until(second)._asdict()}


def line(row: dict[str, Any]) -> str:
    name = " ".join(str(row[key]) for key in ("seed", "schedule", "weights") if key in row)
    kept = {True: "kept", False: "left out"}.get(row.get("kept"), "")
    difference = f"{row['value']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f}), p {row['p']:.2g}"
    return f"{name:32} {row['loss']:.4f}  {difference:44} {kept}"


def json_row(row: dict[str, Any], model: str) -> str:
    name = " ".join(str(row[key]) for key in ("schedule", "weights") if key in row)
    found = {"benchmark": "averages", "contender": name, "model": model, "metric": "val_loss", "value": row["loss"]}
    rest = {key: value for key, value in row.items() if key not in ("loss", "schedule", "weights")}
    return json.dumps(found | {"unit": "nats", "settings": rest | machine("cpu")})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="1m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one object a row")
    args = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    model = MODELS[args.model]
    with tempfile.TemporaryDirectory(prefix="averages-") as scratch:
        folder = Path(scratch)
        write_texts(folder)
        held_out = HeldOut(pieces(folder, "report", trained_tokenizer(folder, model)), SEQ_LEN)
        for seed in args.seeds[:1] if args.quick else args.seeds:
            for make in (averages_of, soup_of):
                for row in make(model, folder, seed, held_out):
                    print(line(row), flush=True)
                    if args.json:
                        with args.json.open("a") as file:
                            file.write(json_row(row, args.model) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
