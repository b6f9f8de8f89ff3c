"""Weights that stay near those that a run began with."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from callbacks.errors import CallbackError
from callbacks.network import local
from callbacks.parts import check_strategy, part_of, summed_over_ranks, trained_parameters, whole_of
from callbacks.trainer_parts import callbacks_of
from callbacks.training_loop import is_accumulating, logs_now

START = "start"
"""The key of the start in a checkpoint."""


class NearStart(Callback, ABC):
    """Adds `strength` / 2 times the sum of F (w - start)^2 over the trained weights w to what a run minimizes.

    It is a step of its own behind each step of the optimizer, the proximal one at the optimizer's learning rate lr:

        w <- (w + lr strength F start) / (1 + lr strength F)

    So no optimizer needs to know of it, and the gradients, their norm, their clipping and Adam's moments are those of
    the loss alone, as with decoupled weight decay. As a term of the gradient it would overshoot where lr strength F is
    above 2, and F differs by many orders of magnitude from weight to weight; this step ends between w and the start
    whatever F is. It is taken once a step, however many micro-batches and ranks there are; a step that is left out, and
    weights without a gradient, are left alone.

    Each rank holds the start of its own parts of the weights, and nothing is sent but the metrics. A checkpoint keeps
    the start, sharded as the weights are.

    Logs `start/penalty`, the sum above with its factor, and `start/distance`, the Euclidean distance from the start.

    Args:
        strength: Of the pull. Under Adam, whose steps are at most about lr, a weight with F = 1 cannot leave its start
            by more than about 1 / strength, however long it is pushed one way.

    Attributes:
        start: By the names of the module's parameters, this rank's parts of the weights before the first step.

    Raises:
        CallbackError: Before training, if the weights are not in this callback's reach (DeepSpeed, quantized ones).
    """

    def __init__(self, strength: float) -> None:
        if not 0 < strength < math.inf:
            raise CallbackError(f"{type(self).__name__}.strength={strength} must be above 0.")
        self.strength = strength
        self.start: dict[str, Tensor] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._names: dict[nn.Parameter, str] = {}

    @abstractmethod
    def importance(self, name: str) -> Tensor | float:
        """F of this rank's part of a parameter: one number, or one for each weight."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._parameters = {}
        check_strategy(trainer, type(self).__name__)
        if stage == "fit" and len(callbacks_of(trainer, NearStart)) > 1:
            raise CallbackError("L2SP and EWC both keep the weights near their start: name one of them.")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = trained_parameters(trainer, type(self).__name__)
        if self.start:
            self.start = self.parts_of(self.start, parameters)
        else:
            self.start = {name: local(weight.detach()).clone() for name, weight in parameters.items()}
        self._parameters, self._names = parameters, {weight: name for name, weight in parameters.items()}
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self._pull)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if is_accumulating(trainer) or not logs_now(trainer):
            return
        squares = {
            name: (_wide(weight) - _wide(self.start[name])).square() for name, weight in self._parameters.items()
        }
        penalty = self._total(trainer, lambda name: (self.importance(name) * squares[name]).sum())
        pl_module.log("start/penalty", self.strength / 2 * penalty)
        pl_module.log("start/distance", self._total(trainer, lambda name: squares[name].sum()) ** 0.5)

    def _total(self, trainer: Trainer, sum_of: Callable[[str], Tensor]) -> float:
        sums = {weight: sum_of(name).detach() for name, weight in self._parameters.items()}
        return float(summed_over_ranks(trainer, sums))

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.start:
            checkpoint[START] = self.whole(self.start)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.training:
            self.start = checkpoint.get(START, {})

    def parts_of(self, held: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        """This rank's parts of what a checkpoint held.

        Raises:
            CallbackError: It is of other parameters.
        """
        if held.keys() != parameters.keys():
            odd = sorted(held.keys() ^ parameters.keys())[0]
            name = type(self).__name__
            raise CallbackError(f"{name}: the start in the checkpoint is of other weights than these, such as {odd}.")
        return {name: part_of(held[name], parameter) for name, parameter in parameters.items()}

    def whole(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a checkpoint holds of this rank's parts."""
        # Before training began they are what another checkpoint held.
        return {n: whole_of(part, self._parameters[n]) for n, part in parts.items()} if self._parameters else parts

    @torch.no_grad()
    def _pull(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                name = self._names[parameter]
                pull = group["lr"] * self.strength * self.importance(name)
                weight = local(parameter.detach())
                weight.copy_(_wide(weight).lerp(_wide(self.start[name]), pull / (1 + pull)))


def _wide(weight: Tensor) -> Tensor:
    """This rank's part in float32 at least, in which a pull is not lost to rounding before it is added up."""
    part = local(weight.detach())
    return part.to(torch.promote_types(part.dtype, torch.float32))
