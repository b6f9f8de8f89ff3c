"""Ends training when one of several conditions says so, and keeps in mind why."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from callbacks.artifacts.model_folder import ModelFolder
from callbacks.contract import SendsAlerts, offered
from callbacks.errors import CallbackError
from callbacks.network import is_sharded
from callbacks.phase import is_rehearsal, is_validating_fit
from callbacks.stopping.best_weights import BestWeights
from callbacks.stopping.conditions import (
    TOKENS,
    Divergence,
    Moment,
    NoImprovement,
    NotFinite,
    StopCondition,
    is_of_training,
)
from callbacks.stopping.graceful_stop import was_stopped
from callbacks.trainer_parts import follows
from callbacks.training_loop import is_accumulating, may_stop

SKIPPED = "train/skipped_steps"  # in which modules count the steps that they left out


class StopWhen(Callback):
    """Asks its conditions after optimizer steps and after validations; the first reason to stop ends the run.

    Lightning's `EarlyStopping` knows one condition a callback, counts validations only, and forgets on a resume that it
    has stopped. Here each condition counts in what it is told to, and all they remember is in the checkpoint, as is
    the reason: a run that was stopped stays so until the condition that stopped it is changed or taken out. Every
    number that a condition sees is the mean over the ranks, so that all ranks come to the same verdict with one
    all-reduce a step (none where only validations are looked at).

    The run ends as at its last step: after a validation, with a checkpoint and the model folders. Before
    `trainer.min_steps` nothing is stopped.

    Args:
        conditions: Any number of `StopCondition`s; `NoImprovement` on `val/loss` if not given.
        restore_best: Put the weights of the best validation back when training ends (not where a signal ends it), so
            that `model/last` and whatever runs after training have them. The first `NoImprovement` tells the metric.

    Attributes:
        stopped: What stopped the run (`reason`, `step`, and the condition's `condition` and `settings`), or None.

    Raises:
        CallbackError: The list is empty; or before training: a validation metric is watched in a run that does not
            validate, or the best weights are asked for and cannot be told or kept. Else where a watched metric is
            missing when it should have been measured.
    """

    def __init__(self, conditions: Sequence[StopCondition] | None = None, restore_best: bool = False) -> None:
        self.conditions = [NoImprovement()] if conditions is None else list(conditions)
        self.restore_best = restore_best
        if not self.conditions:
            raise CallbackError("StopWhen.conditions: there is none; name at least one, such as NoImprovement.")
        self.stopped: dict[str, Any] | None = None
        self._best = _best_weights(self.conditions) if restore_best else None
        self._is_restored = False
        self._num_skipped = 0.0
        self._seconds_before = 0.0
        self._started: float | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._is_restored = False
        if stage == "fit" and self._best is not None and follows(trainer, self, ModelFolder):
            raise CallbackError(
                "StopWhen.restore_best: ModelFolder would write the last weights first; name StopWhen before "
                "it in trainer.callbacks."
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()
        # Resumed where it had been stopped already: it was killed before the model folder was written.
        trainer.should_stop = trainer.should_stop or self.stopped is not None
        if self._best is not None and is_sharded(pl_module):
            raise CallbackError(
                "StopWhen.restore_best: ranks hold parts of the weights; leave it out and take model/best instead."
            )
        of_validations = [each for each in self.conditions if not each.follows_steps]
        validates = trainer.enable_validation and trainer.val_dataloaders != []
        if of_validations and not validates and not is_rehearsal(trainer):
            raise CallbackError(
                f"StopWhen.conditions: {of_validations[0].name} waits for validations, and this run has none; "
                "give it validation data, or watch a metric of training such as train/loss."
            )

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not is_accumulating(trainer) and not is_rehearsal(trainer):
            self._ask([each for each in self.conditions if each.follows_steps], trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        of_validations = [each for each in self.conditions if not each.follows_steps]
        if trainer.sanity_checking:
            _require(trainer, [name for each in of_validations for name in each.watched if not is_of_training(name)])
        if not is_validating_fit(trainer):
            return
        if self._best is not None:
            self._best.offer(trainer, self._measure(trainer, [self._best.monitor])[self._best.monitor])
        self._ask(of_validations, trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore(trainer, pl_module)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A finished run that is started again has no `on_train_end`.
        self._restore(trainer, pl_module)

    @property
    @override
    def state_key(self) -> str:
        return "EarlyStopping"  # as in the checkpoints that were written under that name

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "conditions": {name: each.state_dict() for name, each in self._by_name().items()},
            "stopped": self.stopped,
            "num_skipped": self._num_skipped,
            "seconds": self._seconds(),
            "best": None if self._best is None else self._best.state_dict(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, condition in self._by_name().items():
            condition.load_state_dict(state_dict["conditions"].get(name, {}))
        self.stopped = self.still_stopped(state_dict)
        self._num_skipped, self._seconds_before = state_dict["num_skipped"], state_dict["seconds"]
        if self._best is not None and state_dict["best"] is not None:
            self._best.load_state_dict(state_dict["best"])

    def forget_best(self) -> None:
        """Begin anew: the network was pruned, and what is best is best among what is left."""
        for condition in self.conditions:
            if isinstance(condition, NoImprovement):
                condition.forget_best()
        if self._best is not None:
            self._best.forget()

    def still_stopped(self, state_dict: Mapping[str, Any]) -> dict[str, Any] | None:
        """What stopped the run of a checkpoint, None where nothing did or its condition is another one by now.

        Args:
            state_dict: This callback's, of the checkpoint.
        """
        stopped = state_dict["stopped"]
        condition = self._by_name().get(stopped["condition"]) if stopped else None
        return stopped if condition is not None and condition.settings() == stopped["settings"] else None

    def _ask(self, conditions: Sequence[StopCondition], trainer: Trainer, pl_module: LightningModule) -> None:
        if self.stopped is None and conditions:
            metrics = self._measure(trainer, [name for each in conditions for name in each.watched])
            moment = Moment(trainer.global_step, metrics.pop("seconds"), metrics)
            reasons = [(each, each.check(moment)) for each in conditions]
            found = next(((each, reason) for each, reason in reasons if reason), None)
            if found and may_stop(trainer):
                self._stop(*found, trainer, pl_module)
        # A step in accumulation would lose its gradients; its end is soon.
        trainer.should_stop |= self.stopped is not None and not is_accumulating(trainer)

    def _stop(self, condition: StopCondition, reason: str, trainer: Trainer, pl_module: LightningModule) -> None:
        name = next(name for name, each in self._by_name().items() if each is condition)
        step = trainer.global_step
        self.stopped = {"reason": reason, "step": step, "condition": name, "settings": condition.settings()}
        pl_module.print(f"\nStopping at step {step}: {reason}.")
        for logger in trainer.loggers:
            logger.log_hyperparams({"stopped": f"step {step}: {reason}"})
            alerting = offered(logger, SendsAlerts)
            if alerting is not None and isinstance(condition, Divergence | NotFinite):
                alerting.alert("Run diverged", f"step {step}: {reason}")

    def _measure(self, trainer: Trainer, names: Sequence[str]) -> dict[str, float]:
        """The metrics and the `seconds`, as all ranks see them."""
        found = trainer.callback_metrics
        former, self._num_skipped = self._num_skipped, float(found.get(SKIPPED, 0.0))
        # What the metrics still hold of a step that was left out is of the step before.
        stale = (
            [name for name in names if is_of_training(name) and name != TOKENS] if self._num_skipped > former else []
        )
        _require(trainer, [name for name in names if name not in stale])
        values = [self._seconds(), *(math.nan if name in stale else float(found[name]) for name in names)]
        if trainer.world_size > 1:
            own = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
            values = trainer.strategy.reduce(own, reduce_op="mean").tolist()
        return dict(zip(["seconds", *names], values, strict=True))

    def _restore(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._best is None or self._is_restored or was_stopped(trainer) or is_rehearsal(trainer):
            return
        self._is_restored = True
        if done := self._best.restore(trainer, pl_module):
            pl_module.print(done)

    def _by_name(self) -> dict[str, StopCondition]:
        """The conditions by their names, numbered where one is there twice."""
        found: dict[str, StopCondition] = {}
        for each in self.conditions:
            number = sum(other.name == each.name for other in found.values())
            found[f"{each.name} ({number + 1})" if number else each.name] = each
        return found

    def _seconds(self) -> float:
        return self._seconds_before + (time.monotonic() - self._started if self._started is not None else 0.0)


def _require(trainer: Trainer, names: Sequence[str]) -> None:
    found = trainer.callback_metrics
    for name in names:
        if name not in found:
            raise CallbackError(
                f"StopWhen.conditions: nothing logs {name!r}; logged are {', '.join(sorted(found)) or 'none'}."
            )


def _best_weights(conditions: Sequence[StopCondition]) -> BestWeights:
    watching = next((each for each in conditions if isinstance(each, NoImprovement)), None)
    if watching is None or is_of_training(watching.monitor):
        raise CallbackError(
            "StopWhen.restore_best: a NoImprovement condition has to tell what is best, by a metric of validation."
        )
    return BestWeights(watching.monitor, watching.mode)
