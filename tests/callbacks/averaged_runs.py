"""What the processes of a run with an average are given: they import it by name."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import EMA, SWA
from callbacks.averaging import WeightAverage


class Dump(Callback):
    """Keeps the average that the fit ended with, and the losses of the validations in this process, for each rank."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        line = json.dumps([trainer.global_step, float(trainer.callback_metrics["val/loss"]).hex()])
        with (Path(trainer.default_root_dir) / f"validations-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(line + "\n")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found = next(each for each in trainer.callbacks if isinstance(each, WeightAverage))  # type: ignore[attr-defined]
        state = {"average": found.average, "num_averaged": found.num_averaged}
        torch.save(state, Path(trainer.default_root_dir) / f"average-{trainer.global_rank}.pt")


def dumped(root: Path, rank: int = 0) -> dict[str, Any]:
    lines = (root / f"validations-{rank}.jsonl").read_text().splitlines()
    state = torch.load(root / f"average-{rank}.pt", weights_only=True)
    return state | {"losses": dict(json.loads(line) for line in lines)}


def ema() -> list[Callback]:
    return [EMA(0.9), Dump()]


def swa() -> list[Callback]:
    return [SWA(0.25, every_n_steps=2), Dump()]
