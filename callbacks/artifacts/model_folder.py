"""The model folders that a run leaves behind: the last weights, and those that validated best."""

import errno
import math
import os
import shutil
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors import SafetensorError
from typing_extensions import override

from callbacks.contract import SavesModel, required
from callbacks.errors import CallbackError
from callbacks.phase import is_rehearsal, is_validating_fit
from llm_lightning_safety.files import make_folder, remove


class OtherWeights(Protocol):
    """Weights that are saved beside the last ones."""

    def in_place(self) -> AbstractContextManager[bool]:
        """Inside, the network has them, on all ranks; False where there are none yet."""


class ModelFolder(Callback):
    """Writes `model/last` when fit ends and `model/best` whenever the monitored metric improves.

    The LightningModule writes the files: `save_model(folder)` is called on every rank. A folder is first written
    beside its place and then swapped in by renaming, so that a process killed at any moment leaves either
    the former folder or the new one, whole. A kill exactly between the two renames leaves the former one under
    `NAME.former`; the next run puts it back. A full disk costs the new folder, not the run nor the former folder.

    Args:
        monitor: Metric that decides what is best.
        mode: Whether a smaller (`min`) or a larger (`max`) value is better.
        dirpath: Where the folders go; `model/` in the run folder if not given.

    Attributes:
        last: The folder of the last weights (known from `setup` on).
        best: The folder of the best weights.
        unwritten: Folders that a full disk kept from being written, until they are: what there is in their places is of
            an earlier step, or nothing.
        best_value: Best value of the metric so far, kept in the checkpoint; None before the first validation.

    Raises:
        CallbackError: At the first validation, if it does not log the monitored metric; before training, if the module
            has no `save_model`.
    """

    def __init__(
        self, monitor: str = "val/loss", mode: Literal["min", "max"] = "min", dirpath: str | Path | None = None
    ) -> None:
        self.monitor = monitor
        self.mode = mode
        self.dirpath = dirpath
        self.best_value: float | None = None
        self.last = self.best = Path()
        self.unwritten: list[Path] = []
        self._others: dict[str, OtherWeights] = {}
        self._missed: tuple[int, float] | None = None  # step and value of a best network that a full disk cost
        self._wrote_last = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = Path(self.dirpath or Path(trainer.default_root_dir) / "model")
        self.last, self.best = folder / "last", folder / "best"
        self._wrote_last, self._others = False, {}
        if stage == "fit":
            required(pl_module, SavesModel, self)
        if stage == "fit" and trainer.is_global_zero:
            for place in (self.last, self.best):
                _recover(place)

    def add(self, trainer: Trainer, name: str, weights: OtherWeights) -> None:
        """Let other weights have a folder beside `last`, from `setup` to the end of fit.

        It is written first: by `model/last` a run is known to be finished.
        """
        self._others[name] = weights
        if trainer.is_global_zero:
            _recover(self.last.with_name(name))

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_validating_fit(trainer):
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise CallbackError(f"ModelFolder.monitor: validation logs no {self.monitor!r}; it logs {sorted(metrics)}.")
        value = float(metrics[self.monitor])
        if trainer.strategy.broadcast(self._improves(value)):
            self._write_best(trainer, pl_module, value)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_rehearsal(trainer):
            self._wrote_last = self._write_last(trainer, pl_module)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run killed between its last checkpoint and here resumes with nothing left to train: no `on_train_end`. And
        # where the disk was full there, it may have room now.
        if not self._wrote_last and not is_rehearsal(trainer):
            self._write_last(trainer, pl_module)
        if self._missed is not None and self._missed[0] == trainer.global_step:
            self._write_best(trainer, pl_module, self._missed[1])

    @override
    def state_dict(self) -> dict[str, Any]:
        own = {"monitor": self.monitor, "mode": self.mode, "best_value": self.best_value}
        return own if self._missed is None else own | {"missed": self._missed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if (state_dict["monitor"], state_dict["mode"]) == (self.monitor, self.mode):
            self.best_value = state_dict["best_value"]
            self._missed = state_dict.get("missed")
            self.unwritten = [self.best] if self._missed else []

    def forget_best(self) -> None:
        """Begin anew: the network was pruned, so that what validated best before is not what is asked for any more.

        The first time the folder is kept, as `dense`; what was best between two changes is not.
        """
        self.best_value = self._missed = None
        dense = self.best.with_name("dense")
        if self.best.exists() and not dense.exists():
            self.best.rename(dense)

    def _improves(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self.best_value is None:
            return True
        return value < self.best_value if self.mode == "min" else value > self.best_value

    def _write_best(self, trainer: Trainer, pl_module: LightningModule, value: float) -> None:
        if self._write(trainer, pl_module, self.best):
            self.best_value, self._missed = value, None
        else:
            self._missed = (trainer.global_step, value)

    def _write_last(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        written = []
        for name, weights in self._others.items():
            with weights.in_place() as there:
                written += [self._write(trainer, pl_module, self.last.with_name(name))] if there else []
        return all([*written, self._write(trainer, pl_module, self.last)])

    def _write(self, trainer: Trainer, pl_module: LightningModule, place: Path) -> bool:
        """Saves on all ranks and swaps on the first; False if the disk was full."""
        fresh = Path(trainer.strategy.broadcast(f"{place}.tmp-{os.getpid()}"))
        full = False
        try:
            make_folder(fresh.parent)
            make_folder(fresh)
            required(pl_module, SavesModel, self).save_model(fresh)
        except (OSError, SafetensorError) as error:
            if not _is_disk_full(error):
                raise
            full = True
        full = trainer.strategy.reduce_boolean_decision(full, all=False)
        if trainer.is_global_zero:
            if full:
                shutil.rmtree(fresh, ignore_errors=True)
                warnings.warn(f"The disk is full: {place} was not written; free space and go on.", stacklevel=2)
            else:
                swap_in(fresh, place)
        trainer.strategy.barrier("ModelFolder")
        self.unwritten = [each for each in self.unwritten if each != place] + [place] * full
        return not full


def _is_disk_full(error: Exception) -> bool:
    numbers = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in numbers or any(f"(os error {number})" in str(error) for number in numbers)


def _former(place: Path) -> Path:
    return place.with_name(f"{place.name}.former")


def swap_in(fresh: Path, place: Path) -> None:
    """Puts the finished folder in its place. Renaming a folder is atomic, and nothing else is done to `place`."""
    if place.exists():
        shutil.rmtree(_former(place), ignore_errors=True)
        place.rename(_former(place))
    fresh.rename(place)
    shutil.rmtree(_former(place), ignore_errors=True)


def _recover(place: Path) -> None:
    """Clears what a killed run left behind, and puts the former folder back if it was killed between two renames."""
    if not place.exists() and _former(place).exists():
        _former(place).rename(place)
    for leftover in (_former(place), *place.parent.glob(f"{place.name}.tmp-*")):
        remove(leftover)
