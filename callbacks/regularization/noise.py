"""What all noise in training shares: where it is added, and that it is gone when the fit is over."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from callbacks.contract import HoldsNetwork, required
from callbacks.network import base_network


class Removable(Protocol):
    """What a network is changed by until it is removed, such as a hook."""

    def remove(self) -> None:
        """Leave the network as it was."""


class Noise(Callback, ABC):
    """Hooks in a network, from the beginning of a fit to its end."""

    def __init__(self) -> None:
        self._hooks: Sequence[Removable] = ()

    @abstractmethod
    def attach(self, network: Any) -> Sequence[Removable]:
        """Put the hooks into a transformers network; each of them asks `is_training`."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hooks = self.attach(base_network(required(pl_module, HoldsNetwork, self).model))

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._detach()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._detach()

    def _detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = ()


def is_training(module: nn.Module) -> bool:
    """Whether what a module computes now is learned from: not in validation, samples, rollouts or a reference."""
    return module.training and torch.is_grad_enabled()
