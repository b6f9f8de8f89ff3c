"""What the processes of a run are given: they import it by name."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from callbacks import Pruning
from callbacks.pruning import NM, Cubic, Magnitude, OneShot, Regrow, SparseGPT, Taylor, Unstructured


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


class Dump(Callback):
    """Keeps the weights that the fit began with, and what it ended with, for each rank."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = {name: whole(parameter) for name, parameter in pl_module.model.named_parameters()}

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        pruning = next(c for c in trainer.callbacks if isinstance(c, Pruning))  # type: ignore[attr-defined]
        after = {name: whole(parameter) for name, parameter in pl_module.model.named_parameters()}
        state = {"before": self.before, "after": after, "masks": pruning.masks.state_dict()}
        torch.save(
            state | {"sparsity": pruning.sparsity}, Path(trainer.default_root_dir) / f"dump-{trainer.global_rank}.pt"
        )


def dumped(root: Path, rank: int = 0) -> dict[str, Any]:
    return torch.load(root / f"dump-{rank}.pt", weights_only=True)


def wanda() -> list[Callback]:
    return [Pruning(Unstructured(0.5), schedule=Cubic(2, 12, 2), num_batches=0), Dump()]


def taylor() -> list[Callback]:
    return [Pruning(NM(2, 4), Taylor(), Cubic(2, 12, 3), num_batches=0), Dump()]


def sparse_gpt() -> list[Callback]:
    return [Pruning(NM(2, 4), SparseGPT(num_batches=6), OneShot(12), num_batches=0), Dump()]


def regrow() -> list[Callback]:
    return [Pruning(Unstructured(0.5), schedule=Regrow(1, 14, 2, 0.4), num_batches=0), Dump()]


def _magnitude(compare: Any) -> list[Callback]:
    return [Pruning(Unstructured(0.3, compare), Magnitude(), OneShot(2), num_batches=0), Dump()]


def rows() -> list[Callback]:
    return _magnitude("rows")


def matrix() -> list[Callback]:
    return _magnitude("matrix")


def network() -> list[Callback]:
    return _magnitude("network")
