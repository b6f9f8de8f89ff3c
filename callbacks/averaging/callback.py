"""An average of the trained weights, which is validated and saved beside them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from typing_extensions import override

from callbacks.artifacts.model_folder import ModelFolder
from callbacks.errors import CallbackError
from callbacks.network import local
from callbacks.parts import check_strategy, part_of, reshard, trained_parameters, whole_of
from callbacks.stopping.stop_when import StopWhen
from callbacks.trainer_parts import callbacks_of
from callbacks.training_loop import is_accumulating

AVERAGE = "average"
"""The key of the average in a checkpoint, and the name of its model folder."""


class WeightAverage(Checkpoint, ABC):
    """Averages the weights that are trained, after optimizer steps, in float32 at least.

    Validations are of the average: the network has it from the beginning of a validation to its end, when the other
    callbacks have seen it too, so that `val/loss`, samples and `model/best` belong together; so do `validate`, `test`
    and `predict`. Then, and where anything raises in between, the training weights are back. A checkpoint has those at
    any time, and the average beside them under `average`. At the end of fit, and where it is stopped, `ModelFolder`
    writes `model/average`. Training itself is not changed by a bit.

    Each rank averages the parts of the weights that it holds. So whole weights, DDP, FSDP2 and adapters are one case,
    nothing is sent, and sharded checkpoints hold sharded averages. Lightning's `WeightAveraging` copies the whole
    module, with all frozen weights, before it is sharded, and swaps the two: it knows no FSDP2, and what is saved in
    the middle of a validation has the one in the place of the other. As a `Checkpoint` this callback comes after those
    that look at a validated network, and before those that save the run.

    Buffers are not averaged: the network has but one set of them. A step that was left out counts like another.

    Args:
        start: The optimizer step from which on weights are averaged; below 1 a share of the run.

    Attributes:
        average: By the names of the module's parameters, this rank's parts; empty before `start`.
        num_averaged: Sets of weights in it so far.

    Raises:
        CallbackError: Before training, if the weights are not in this callback's reach (DeepSpeed, quantized ones), or
            another callback wants the network for itself.
    """

    def __init__(self, start: float) -> None:
        if start < 0:
            raise CallbackError(f"{type(self).__name__}.start={start} must not be negative.")
        self.start = start
        self.average: dict[str, Tensor] = {}
        self.num_averaged = 0
        self._first_step = 0
        self._step = 0  # up to which weights were looked at
        self._parameters: dict[str, nn.Parameter] = {}
        self._training: dict[str, Tensor] = {}  # the weights that the average is in the place of
        self._trainer: Trainer | None = None

    @abstractmethod
    def rate(self) -> float:
        """How much the newest weights count in the average with them; not asked for the first ones."""

    def is_due(self, num_steps: int) -> bool:
        """Whether the weights so many steps after the start are averaged."""
        return True

    @property
    def copies(self) -> dict[nn.Parameter, Tensor]:
        """The average by the parameters that it is of."""
        return {self._parameters[name]: average for name, average in self.average.items() if self._parameters}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer, self._parameters, self._training = trainer, {}, {}
        name = type(self).__name__
        check_strategy(trainer, name)
        if stage != "fit":
            return
        if len(callbacks_of(trainer, WeightAverage)) > 1:
            raise CallbackError(f"{name}: a validation is of one average; name one of EMA and SWA.")
        if any(each.restore_best for each in callbacks_of(trainer, StopWhen)):
            raise CallbackError(
                f"StopWhen.restore_best: with {name} validations are of the average, and the best of those is in "
                "model/best already: leave restore_best out."
            )
        for folder in callbacks_of(trainer, ModelFolder):
            folder.add(trainer, AVERAGE, self)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        if 0 < self.start < 1 and math.isinf(total):
            raise CallbackError(
                f"{type(self).__name__}.start={self.start} is a share of a run without end: give a number of steps."
            )
        # The epsilon: 0.7 of 10 is 7, whatever floats make of it.
        self._first_step = int(self.start * total + 1e-9) if 0 < self.start < 1 else int(self.start)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach()

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._follow()
        if not is_accumulating(trainer):
            pl_module.log("average/num_averaged", float(self.num_averaged))

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_in()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_back()

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_in()

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_back()

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_in()

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_back()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._put_back()

    @contextmanager
    def in_place(self) -> Iterator[bool]:
        """Inside, the network has the average; False where there is none yet. Every rank enters it."""
        self._put_in()
        try:
            yield bool(self.average)
        finally:
            self._put_back()

    @override
    def state_dict(self) -> dict[str, Any]:
        self._follow()  # where a callback before this one saves
        return {"num_averaged": self.num_averaged, "step": self._step}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_averaged, self._step = state_dict["num_averaged"], state_dict["step"]

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.average:
            checkpoint[AVERAGE] = {n: whole_of(part, self._parameters[n]) for n, part in self.average.items()}
        if not self._training:
            return
        reshard(pl_module)
        names = {parameter: name for name, parameter in self._parameters.items()}
        for name, parameter in pl_module.named_parameters(remove_duplicate=False):
            if parameter in names:
                checkpoint["state_dict"][name] = whole_of(self._training[names[parameter]], parameter)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.average = checkpoint.get(AVERAGE, {})

    def _attach(self) -> None:
        """Find the weights, and bring what a checkpoint held to where they are; once, before anything is trained."""
        if self._parameters:
            return
        assert self._trainer is not None
        name = type(self).__name__
        parameters = trained_parameters(self._trainer, name)
        if not self.num_averaged:  # of another kind of average
            self.average = {}
        if self.average and self.average.keys() != parameters.keys():
            odd = sorted(self.average.keys() ^ parameters.keys())[0]
            raise CallbackError(f"{name}: the average in the checkpoint is of other weights than these, such as {odd}.")
        self.average = {n: part_of(self.average[n], p) for n, p in parameters.items() if self.average}
        self._parameters = parameters

    @torch.no_grad()
    def _follow(self) -> None:
        """Average the weights of the newest step, where that was not done yet."""
        assert self._trainer is not None
        step = self._trainer.global_step
        if not self._parameters or self._training or step <= self._step:
            return
        self._step = step
        if step < self._first_step or not self.is_due(step - self._first_step):
            return
        rate = self.rate() if self.average else 1.0
        for name, parameter in self._parameters.items():
            newest = local(parameter.detach())
            dtype = torch.promote_types(newest.dtype, torch.float32)
            if name in self.average:
                self.average[name].lerp_(newest.to(dtype), rate)
            else:
                self.average[name] = newest.to(dtype, copy=True)
        self.num_averaged += 1

    @torch.no_grad()
    def _put_in(self) -> None:
        # Validation is in inference mode, whose tensors can never be changed outside of it.
        with torch.inference_mode(False):
            self._attach()
            self._reshard()
            for name, average in self.average.items():
                weight = local(self._parameters[name].detach())
                self._training[name] = weight.clone()
                weight.copy_(average)

    @torch.no_grad()
    def _put_back(self) -> None:
        if self._training:
            self._reshard()
            for name, weight in self._training.items():
                local(self._parameters[name].detach()).copy_(weight)
            self._training = {}

    def _reshard(self) -> None:
        assert self._trainer is not None
        reshard(self._trainer.lightning_module)
