"""The other parts of a trainer that callbacks look for."""

from typing import TypeVar

from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import WandbLogger

Kind = TypeVar("Kind", bound=Callback)


def callbacks_of(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """The trainer's callbacks of a kind, in their order."""
    return [each for each in trainer.callbacks if isinstance(each, kind)]  # type: ignore[attr-defined]


def follows(trainer: Trainer, callback: Callback, kind: type[Callback]) -> bool:
    """Whether a callback of a kind stands before this one in `trainer.callbacks`."""
    every: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(each, kind) for each in every[: every.index(callback)])


def wandb_loggers(trainer: Trainer) -> list[WandbLogger]:
    """The trainer's W&B loggers, which take tables and pictures."""
    return [each for each in trainer.loggers if isinstance(each, WandbLogger)]


def datamodule_of(trainer: Trainer) -> LightningDataModule | None:
    """The run's DataModule, None where it was given loaders."""
    return getattr(trainer, "datamodule", None)
