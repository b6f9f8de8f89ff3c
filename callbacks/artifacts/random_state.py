"""Random number generators as part of the training state, so that a resumed run draws the same."""

import random
import warnings
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader
from typing_extensions import override

GeneratorStates = dict[str, Any]


class RandomState(Callback):
    """Keeps the generators of Python, NumPy, torch and CUDA of every rank in the checkpoint.

    They are restored as late as possible, in `on_train_start`: building the network and the loaders draws numbers
    too. Validation is kept from advancing them, because a run resumed from a checkpoint that was written just before
    a validation does not repeat that validation. The states are tensors and builtins, so that a checkpoint loads with
    `weights_only=True`.

    A checkpoint of another number of ranks has no state for each rank; training then goes on from this run's seed,
    with a warning.
    """

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        self._restored: list[GeneratorStates] | None = None
        self._after_batch: GeneratorStates | None = None
        self._is_validating = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device

    @override
    def state_dict(self) -> dict[str, Any]:
        own = self._after_batch if self._is_validating else None
        own = own or generator_states(self._device)
        if not dist.is_initialized():
            return {"ranks": [own]}
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, own)
        return {"ranks": ranks}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict["ranks"]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _seed_apart(trainer.val_dataloaders)
        ranks, self._restored = self._restored, None
        if ranks is None:
            return
        if len(ranks) == trainer.world_size:
            self._after_batch = ranks[trainer.global_rank]  # a validation may come first
            set_generator_states(self._after_batch, self._device)
        elif trainer.is_global_zero:
            warnings.warn(
                f"The checkpoint holds the random state of {len(ranks)} ranks and this run has {trainer.world_size}:"
                " dropout will not repeat what an uninterrupted run draws.",
                stacklevel=2,
            )

    @override
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        # The validation loader draws its seed before `on_validation_start`, so that hook would be too late.
        self._after_batch = generator_states(self._device)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_validating = True

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_validating = False
        # The sanity check comes before the first batch, and Lightning isolates it.
        if self._after_batch is not None:
            set_generator_states(self._after_batch, self._device)


def _seed_apart(loaders: Any) -> None:
    """Gives loaders a generator for their workers' seeds, which they otherwise draw from the global one.

    A resumed run opens the validation loader once more where a checkpoint and a validation fell on the same step.
    """
    for loader in CombinedLoader(loaders).flattened:
        if isinstance(loader, DataLoader) and loader.generator is None:
            loader.generator = torch.Generator()


def generator_states(device: torch.device) -> GeneratorStates:
    """The states of the process' global generators (and of `device`'s, where it is a GPU), as tensors and builtins."""
    version, python, gauss_next = random.getstate()
    numpy: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached_gaussian = numpy
    states: GeneratorStates = {
        "python": (version, torch.tensor(python, dtype=torch.int64), gauss_next),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached_gaussian)),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(states: GeneratorStates, device: torch.device) -> None:
    """Puts the global generators where `generator_states` found them."""
    version, python, gauss_next = states["python"]
    random.setstate((version, tuple(python.tolist()), gauss_next))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


def generators_kept(device: torch.device) -> AbstractContextManager[None]:
    """What is drawn inside, from torch's generators and `device`'s, is as if it had not been drawn."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
