"""Fits of the tiny Llama with pruning."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from callbacks import Pruning
from callbacks.network import local
from callbacks.training_loop import is_accumulating
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_trainer


class Zeros(Callback):
    """After each optimizer step, on its place behind `Pruning`: whatever is masked has to be zero."""

    def __init__(self, pruning: Pruning) -> None:
        self.pruning = pruning
        self.sparsities: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self.check)

    def check(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        masks = self.pruning.masks
        for name, kept in masks.kept.items():
            parameter = masks.parameters[name]
            held = [parameter.detach(), *(v for v in optimizer.state[parameter].values() if v.ndim)]
            for tensor in map(local, held):
                assert not tensor[~kept.expand_as(tensor)].any(), name

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not is_accumulating(trainer):
            self.sparsities.append(self.pruning.sparsity)


class Chosen(TinyModule):
    """With an optimizer of choice, and weights that do not all lie near zero."""

    def __init__(self, optimizer: Any = torch.optim.AdamW, **settings: Any) -> None:
        super().__init__()
        self.chosen, self.settings = optimizer, {"lr": 1e-2} | settings

    def configure_optimizers(self) -> Any:
        return self.chosen([p for p in self.parameters() if p.ndim == 2], **self.settings)


def fit(
    root: Path, pruning: Pruning, *others: Callback, module: Any = None, measured: bool = False, **settings: Any
) -> Any:
    """Returns the fitted module and what `Zeros` saw."""
    pruning.num_batches = 4 if measured else 0
    seed_everything(1, verbose=False)
    module = module or Chosen(weight_decay=0.5)
    zeros = Zeros(pruning)
    trainer = tiny_trainer(root, callbacks=[pruning, zeros, *others], **settings)
    trainer.fit(module, TinyData())
    return module, zeros
