"""Pruning in the course of a fit."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from callbacks.artifacts.model_folder import ModelFolder
from callbacks.averaging import WeightAverage
from callbacks.continual import NearStart
from callbacks.contract import CountsTokens, HoldsNetwork, required
from callbacks.errors import CallbackError
from callbacks.monitoring.summary import RunSummary
from callbacks.network import base_network, has_adapter, local
from callbacks.phase import is_rehearsal, is_validating_fit
from callbacks.pruning import report
from callbacks.pruning.criteria import Criterion, Magnitude, Wanda, gradients_of
from callbacks.pruning.guard import Guard
from callbacks.pruning.masks import KEEPS_ZEROS, Masks
from callbacks.pruning.reconstruction import check_whole, reconstruct
from callbacks.pruning.schedules import Constant, Cubic, OneShot, PruningSchedule, Regrow
from callbacks.pruning.selection import exchanged
from callbacks.pruning.sparse_gpt import SparseGPT
from callbacks.pruning.structured import Structured
from callbacks.pruning.structures import Structure, Unstructured, layer_of
from callbacks.pruning.weights import Weight, find_weights
from callbacks.stopping.graceful_stop import was_stopped
from callbacks.stopping.stop_when import StopWhen
from callbacks.trainer_parts import callbacks_of, follows, wandb_loggers
from callbacks.training_loop import is_accumulating
from llm_lightning_safety.files import write_text


class Pruning(Callback):
    """Prunes the network step by step while it trains, and lets it recover.

    What is pruned stays zero after every optimizer step, in the weights and in the optimizer's moments. With a LoRA the
    base is pruned and the adapter masked, and the model folder holds the merged network. At the end of fit, structured
    masks are cut out of the network, and `pruning.txt` and `pruning.png` in the run folder show what it cost and gave.

    A change of the masks makes earlier validations incomparable, so `model/best` and the patience of `StopWhen`
    start anew with each; the best of the dense network is kept as `model/dense`.

    Attributes:
        masks: what is kept, under the parameters' own names.
        sparsity: share of the weights that can be pruned which is pruned now, over all ranks.

    Args:
        structure: what goes together, and how much of it: `Unstructured`, `NM` or `Structured`.
        criterion: what a weight is worth: `Wanda` (the default), `Taylor`, `Movement` or `Magnitude` (the default with
            `Regrow`); or `SparseGPT`, which also changes the weights that stay, and goes with `OneShot` and `Constant`.
        schedule: when: `Cubic` (the default), `Linear`, `Constant` or `OneShot`; or `Regrow`, with which pruned weights
            come back for others.
        include: patterns for names of weights, `*.mlp.*`; by default the linear layers of the decoder's blocks, so that
            embeddings and head are spared.
        exclude: patterns for those to leave out.
        max_loss_increase: a guard: where `monitor` rises past this share over its value before pruning, the schedule
            holds until it has recovered. None for no guard.
        monitor: validation loss for guard and report.
        num_batches: validation batches, on each rank, for the perplexity in the report; 0 measures nothing.

    Raises:
        CallbackError: settings that cannot work, at the latest before the first step.
    """

    def __init__(
        self,
        structure: Structure,
        criterion: Criterion | None = None,
        schedule: PruningSchedule | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        max_loss_increase: float | None = None,
        monitor: str = "val/loss",
        num_batches: int = 16,
    ) -> None:
        if num_batches < 0:
            raise CallbackError(f"Pruning.num_batches={num_batches} must not be negative.")
        self.structure = structure
        self.schedule = self._plan = schedule or Cubic()
        self.criterion = criterion or (Magnitude() if isinstance(schedule, Regrow) else Wanda())
        self.include, self.exclude = include, exclude
        self.guard = None if max_loss_increase is None else Guard(max_loss_increase)
        if self.guard is not None and self.schedule.holds_weights:
            raise CallbackError(
                f"Pruning.max_loss_increase={max_loss_increase} holds a schedule until training has made good for "
                "what was pruned, and OneShot does not train: take Cubic or Linear, or leave max_loss_increase out."
            )
        if self.structure.adds_scores and not self.criterion.adds_up:
            raise CallbackError(
                f"Pruning.criterion={type(self.criterion).__name__} only says which of two weights is worth more, and "
                f"{type(structure).__name__} with these settings adds scores up: take Unstructured or NM, or the "
                "criterion Taylor."
            )
        if isinstance(self.criterion, SparseGPT):
            self.structure.width(self.criterion.block_size)
            if not isinstance(self.schedule, OneShot | Constant):
                raise CallbackError(
                    f"Pruning.schedule={type(self.schedule).__name__}: SparseGPT prunes all at once: take OneShot or "
                    "Constant, or the criterion Wanda."
                )
        if isinstance(schedule, Regrow) and not (isinstance(structure, Unstructured) and self.guard is None):
            raise CallbackError(
                "Pruning.schedule=Regrow exchanges single weights while it trains: take structure Unstructured, and "
                "leave max_loss_increase out."
            )
        self.monitor = monitor
        self.num_batches = num_batches
        self.masks = Masks({})
        self.sparsity = 0.0
        self._weights: list[Weight] = []
        self._module: LightningModule | None = None
        self._dense: report.Figures = {}
        self._points: list[list[float]] = []
        # Units that the schedule has counted, those among them in which the guard held it, and what it has done.
        self._counted, self._held, self._done = 0.0, 0.0, 0.0
        self._finished = False
        self._gradients: dict[str, Tensor] = {}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._module = pl_module
        if stage != "fit":
            return
        self._finished = False
        if self.schedule.unit == "tokens":
            required(pl_module, CountsTokens, self)
        if len(callbacks_of(trainer, Pruning)) > 1:
            raise CallbackError("Pruning: one in a run; Structured takes channels, kv_groups and layers together.")
        if isinstance(self.structure, Structured) and callbacks_of(trainer, WeightAverage):
            raise CallbackError(
                "Pruning.structure=Structured cuts the network at its end, and no average of the weights before would "
                "fit it: take Unstructured or NM, or leave EMA and SWA out."
            )
        if callbacks_of(trainer, NearStart):
            raise CallbackError(
                "Pruning takes weights out, and L2SP and EWC draw them back to what they were: leave one of them out."
            )
        if follows(trainer, self, ModelFolder):
            raise CallbackError(
                "Pruning must stand before ModelFolder in trainer.callbacks, which writes what it left."
            )
        name = type(trainer.strategy).__name__
        if name.startswith(("DeepSpeed", "FSDPStrategy")):
            raise CallbackError(f"Pruning cannot find single weights under {name}: use strategy ddp or fsdp2.")

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._attach()
        self._plan = self.schedule.resolve(trainer.estimated_stepping_batches, is_rehearsal(trainer))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.masks.to_devices()
        self.criterion.watch(self._will_change)
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self._after_optimizer_step)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if isinstance(self.criterion, SparseGPT) and self._done < 1:
            self.criterion.keep(batch)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.criterion.before_step(self._weights)
        if isinstance(self._plan, Regrow) and self._done and self._plan.is_due(self._counted, trainer.global_step + 1):
            self._gradients = gradients_of(self._weights)
        self.masks.apply_to_gradients()
        if self._plan.holds_weights and self._counted < self._plan.end:
            for group in optimizer.param_groups:
                group["held_lr"], group["lr"] = group["lr"], 0.0

    def _after_optimizer_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            if "held_lr" in group:
                group["lr"] = group.pop("held_lr")
        if type(optimizer) not in KEEPS_ZEROS:
            self.masks.apply_to_weights()
            self.masks.apply_to_moments([optimizer])

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if is_accumulating(trainer):
            return
        self.criterion.after_step()
        in_steps = self._plan.unit == "steps"
        now = float(trainer.global_step if in_steps else required(pl_module, CountsTokens, self).tokens_seen)
        before, self._counted = self._counted, now
        if self.guard is not None and self.guard.holds and now > self._plan.begin and self._done < 1:
            self._held += now - max(before, self._plan.begin)
        elif self._plan.is_due(before - self._held, now - self._held):
            self._prune(trainer, self._plan.fraction(now - self._held))
            self._regrow(trainer, now)
        pl_module.log("pruning/sparsity", self.sparsity)
        if self.guard is not None:
            pl_module.log("pruning/held", float(self.guard.holds and self._done < 1))

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_validating_fit(trainer):
            return
        if self.monitor not in trainer.callback_metrics:
            names = sorted(trainer.callback_metrics)
            raise CallbackError(f"Pruning.monitor: validation logs no {self.monitor!r}; it logs {names}.")
        loss = float(trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor])))
        self._points.append([float(trainer.global_step), self.sparsity, loss])
        if self.guard is not None:
            self.guard.judge(loss, self.sparsity)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run killed between its last checkpoint and here resumes with nothing left to train: no `on_train_end`.
        self._finish(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "masks": self.masks.state_dict(),
            "criterion": self.criterion.state_dict(),
            "structure": self.structure.state_dict(),
            "guard": None if self.guard is None else self.guard.state_dict(),
            "schedule": [self._counted, self._held, self._done],
            "points": self._points,
            "dense": self._dense,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._attach()
        self.criterion.load_state_dict(state_dict["criterion"])
        self.structure.load_state_dict(state_dict["structure"])
        if self.guard is not None and state_dict["guard"] is not None:
            self.guard.load_state_dict(state_dict["guard"])
        self._counted, self._held, self._done = state_dict["schedule"]
        self._points, self._dense = state_dict["points"], state_dict["dense"]
        self.masks.load_state_dict(state_dict["masks"])
        # Frozen weights are in no checkpoint: they were just read as they were before pruning.
        self._apply([])

    @property
    def _will_change(self) -> bool:
        """Whether the criterion has to say once more what weights are worth."""
        return self._done < 1 or (isinstance(self._plan, Regrow) and self._counted < self._plan.end)

    @property
    def _holder(self) -> HoldsNetwork:
        assert self._module is not None
        return required(self._module, HoldsNetwork, self)

    def _attach(self) -> None:
        """Find the weights, once, as soon as the network is built."""
        if self._weights:
            return
        model = self._holder.model
        self._weights = find_weights(model, self.include, self.exclude)
        if has_adapter(model):
            from callbacks.pruning.lora import check_adapter

            check_adapter(model, self._weights)
        elif any(p.requires_grad for p in model.parameters()) and not self._weights[0].parameter.requires_grad:
            raise CallbackError("Pruning: the network is frozen under an adapter that cannot be merged; LoRA can.")
        if isinstance(self.schedule, Regrow) and not all(weight.parameter.requires_grad for weight in self._weights):
            raise CallbackError(
                "Pruning.schedule=Regrow needs gradients, and weights are frozen: train without adapter."
            )
        self.masks = Masks(self.structure.attach(base_network(model), self._weights))
        self._weights = [weight for weight in self._weights if weight.name in self.masks.parameters]
        if isinstance(self.criterion, SparseGPT):
            check_whole(model, self._weights)
        self.criterion.attach(self._weights, self.structure.blocks)

    def _prune(self, trainer: Trainer, fraction: float) -> None:
        """Choose what goes now, and let it be zero from here on."""
        fraction = max(fraction, self._done)
        if fraction == self._done:
            return
        if isinstance(self.criterion, SparseGPT) and fraction < 1:
            return
        if not self.masks.kept:
            self._dense = self._measure(trainer)
        self.masks.update(self._new_masks(trainer, fraction))
        self._apply(trainer.optimizers)
        self.criterion.forget()
        self._done = fraction
        self.criterion.watch(self._will_change)
        for each in callbacks_of(trainer, Callback):
            if isinstance(each, StopWhen | ModelFolder | RunSummary):
                each.forget_best()
            if isinstance(each, WeightAverage):
                self.masks.apply_to_copies(each.copies)

    def _regrow(self, trainer: Trainer, now: float) -> None:
        """Exchange weights, after a step whose gradients were finite."""
        if not (isinstance(self._plan, Regrow) and self._gradients):
            return
        comes = {}
        for weight in self._weights:
            scores, gradient = self.criterion.score(weight), self._gradients.pop(weight.name)
            share, kept = self._plan.exchanged(now), self.masks.kept[weight.name]
            self.masks.kept[weight.name], comes[weight.name] = exchanged(kept, scores, gradient, share, weight.group)
        self._apply(trainer.optimizers)  # those that go are zero now, and stay so where they come back
        for each in callbacks_of(trainer, WeightAverage):
            self.masks.apply_to_copies(each.copies)
        self.masks.update({name: self.masks.kept[name] | mask for name, mask in comes.items()})
        self._apply([])
        self.criterion.forget()
        self.criterion.watch(self._will_change)

    def _new_masks(self, trainer: Trainer, fraction: float) -> dict[str, Tensor]:
        """Of the weights whose turn it is."""
        weights, share = self._weights, fraction
        if isinstance(self.criterion, SparseGPT):
            return reconstruct(trainer, base_network(self._holder.model), weights, self.structure, self.criterion)
        if self._plan.holds_weights and self.structure.is_local(self.criterion):
            weights, share = self._stretch(self._done, fraction), 1.0
        return self.structure.masks(weights, self.criterion, self.masks.kept, share)

    def _stretch(self, begin: float, end: float) -> list[Weight]:
        """The weights of the blocks between two shares of the network."""
        layers = list(dict.fromkeys(layer_of(weight.name) for weight in self._weights))
        chosen = set(layers[round(begin * len(layers)) : round(end * len(layers))])
        return [weight for weight in self._weights if layer_of(weight.name) in chosen]

    def _apply(self, optimizers: Sequence[Optimizer]) -> None:
        total = sum(parameter.numel() for parameter in self.masks.parameters.values())
        self.sparsity = self.masks.num_pruned() / total
        self.masks.apply_to_weights()
        self.masks.apply_to_moments(optimizers)
        if has_adapter(self._holder.model):
            from callbacks.pruning.lora import mask_adapters

            mask_adapters(self._weights, self.masks.kept)

    def _measure(self, trainer: Trainer) -> report.Figures:
        model = self._holder.model
        sharded = any(local(parameter) is not parameter for parameter in model.parameters())
        # The parts of a sharded network cannot be run without the strategy.
        skipped = sharded or is_rehearsal(trainer) or not self.num_batches
        return {} if skipped else report.measure(trainer, model, self.num_batches)

    def _finish(self, trainer: Trainer) -> None:
        """Make the masks permanent: cut out what is structured, and report; once, and not where the run will go on."""
        if self._finished or was_stopped(trainer):
            return
        self._finished = True
        self.masks.apply_to_weights()  # whatever a callback has put back for the end
        if isinstance(self.structure, Structured) and self.masks.kept:
            from callbacks.pruning.removal import remove_units

            holder = self._holder
            if has_adapter(holder.model):
                holder.model = holder.model.merge_and_unload()
            remove_units(holder.model, self.structure, self.masks.kept)
        if is_rehearsal(trainer):
            return
        pruned = self._measure(trainer)
        if trainer.is_global_zero:
            self._report(trainer, pruned)

    def _report(self, trainer: Trainer, pruned: report.Figures) -> None:
        lines = [f"Pruned: {self.sparsity:.1%} of the weights that could be ({self._done:.1%} of the way)."]
        if self._done < 1:
            lines.append("The run ended before the schedule did; give it more steps, or an earlier end.")
        if self.guard is not None:
            lines.append(self.guard.in_words(self.sparsity, self._held, self._plan.unit))
        if self._dense and pruned:
            lines += ["", report.table(self._dense, pruned)]
        if not isinstance(self.structure, Structured):
            lines += ["", "Zeros are stored and multiplied like other numbers: they bring no speed by themselves."]
        text, root = "\n".join(lines), Path(trainer.default_root_dir)
        trainer.lightning_module.print(f"\n{text}")
        try:
            write_text(root / "pruning.txt", f"{text}\n")
            if self._points:
                report.draw(root / "pruning.png", self._points, self.guard.limit if self.guard else float("nan"))
                for logger in wandb_loggers(trainer):
                    logger.log_image("pruning/loss_and_sparsity", [str(root / "pruning.png")])
        except OSError as error:
            warnings.warn(f"The report on pruning was not written: {error}", stacklevel=2)
