"""What all modules share: the network, the optimizer, the loss divisor of a whole step, and the model folder."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from peft import PeftConfig
from torch.optim import Optimizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.adapter import Adapter
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.description import describe
from llm_lightning.models.export import save_model_folder
from llm_lightning.models.generation import generation_settings
from llm_lightning.models.heads import base_model, pinned, prepare_batch
from llm_lightning.models.loading.identity import Beginning
from llm_lightning.models.loading.sharding import Sharding
from llm_lightning.models.merging.adapter import merge_folder
from llm_lightning.models.tasks import LANGUAGE, Task
from llm_lightning.modules.checks import (
    check_adapter,
    check_behaviour,
    check_generation,
    check_muon,
    check_positions,
    check_same_model,
)
from llm_lightning.modules.decay import block_matrices, decay_groups
from llm_lightning.modules.evaluating import compare, evaluate, load_tasks, table
from llm_lightning.modules.gradients import gradient_norm
from llm_lightning.modules.ranks import Ranks
from llm_lightning.modules.resumed_optimizer import Settings, put_back, settings_of
from llm_lightning.modules.schedule import Schedule
from llm_lightning.modules.step import OptimizerStep, Totals
from llm_lightning.optimizers import Muon

STATE_KEY = "llm_lightning"

# A dataclass without other bases: jsonargparse would not take its subclasses by class_path.
set_parsing_settings(subclasses_enabled=[QuantizationConfigMixin])


class LanguageModule(LightningModule):
    """A LightningModule around one network, `self.model`.

    A subclass's `training_step` returns a *sum* of losses and reports it by `step.collect`; `modules/step.py` says what
    becomes of it. Lightning's own division by the number of micro-batches, which weighs a token by the length of its
    neighbours, is undone.

    Args:
        backbone: the network.
        optimizer: any torch optimizer by `class_path`, called with the parameter groups; by default AdamW in one kernel
            a step, with the decay of GPT-3 and Llama.
        schedule: of the learning rate.
        peft: an adapter to train instead of the network, by the `class_path` of any peft config (`peft.LoraConfig`) or
            `llm_lightning.models.adapters.BottleneckConfig`.
        max_skipped_steps: steps in a row whose loss or gradient is not finite before the run is stopped.
    """

    tokenizer: Any = None
    batch_kind: str | None = None
    """What it learns from, as DataModules' `batch_kind` names it (see `checks.DATA`); None: anything."""
    task: Task = LANGUAGE
    divisor = "tokens"
    """Of the sums given to `step.collect`, the one that the step's loss is divided by."""
    monitor: tuple[str, str] = ("val/loss", "min")
    """The metric by which the best weights are chosen, and its better end."""

    def __init__(
        self,
        backbone: Backbone,
        # A lambda of constants, which jsonargparse can read: --model.optimizer.lr then changes this one value.
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=6e-4, weight_decay=0.1, fused=True),
        schedule: Schedule = Schedule(),  # noqa: B008 (read only)
        peft: PeftConfig | None = None,
        max_skipped_steps: int = 10,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.optimizer = optimizer
        self.schedule = schedule
        self.peft = peft
        self.model: Any = None
        self.adapter: Adapter | None = None
        self.tokens_seen = 0
        self.step = OptimizerStep(self.divisor, max_skipped_steps)
        self._optimizer_settings: Settings = []
        self._beginning = Beginning(backbone.path)

    def check(self, datamodule: LightningDataModule | None = None) -> None:
        """Find a user's mistakes before any long work starts; raises `UserError`."""
        self.schedule.check()
        check_adapter(self.backbone, self.peft, self.task)
        config = self.backbone.read_config()
        check_generation(self.backbone, self.task)
        check_behaviour(self.backbone, self.peft, self.task, config)
        check_positions(config, self.peft, getattr(datamodule, "seq_len", None))

    def setup(self, stage: str) -> None:
        """Take the tokenizer from the DataModule."""
        datamodule = getattr(self.trainer, "datamodule", None)
        self.tokenizer = getattr(datamodule, "tokenizer", None)

    @property
    def sharding(self) -> Sharding | None:
        """How the strategy wants the network sharded; None: whole on each rank."""
        return getattr(self.trainer.strategy, "sharding", None) if self._trainer is not None else None

    def configure_model(self) -> None:
        """Build the network on the rank's own device, or sharded over all ranks, with its adapter."""
        if self.model is None:
            self.model = self.build_network(self.backbone)
        if self.peft is not None and self.adapter is None:
            self.adapter = Adapter(self.model, self.peft, self.task)
            self.model = self.adapter.model
            self.strict_loading = False  # the frozen weights are in no checkpoint
        network = base_model(self.model)
        if network.can_generate():
            network.generation_config = generation_settings(network.generation_config, self.tokenizer)
        if next(network.parameters()).is_meta:
            self.shard_and_load(self.backbone, network, None if self.adapter is None else self.adapter.base_names)
            if self.adapter is not None:
                self.adapter.after_load()

    def build_network(self, backbone: Backbone) -> Any:
        """A network; without weights where it is sharded before they are loaded."""
        if self.sharding is not None:
            backbone.check_sharded()
        return backbone.build(self.tokenizer, self.task, empty=self.sharding is not None)

    def shard_and_load(self, backbone: Backbone, network: Any, names: Mapping[str, str] | None = None) -> None:
        """Shard a network from `build_network` and load its weights; see `sharding.load_weights` for `names`."""
        assert self.sharding is not None
        names = names or {name: name for name in network.state_dict()}
        self.sharding.apply(network)
        backbone.load_weights(network, self.task, self.sharding, names)

    def on_fit_start(self) -> None:
        """Say what trains, and tell the adapter how long the run is."""
        if self.adapter is not None:
            self.adapter.before_fit(self.trainer.estimated_stepping_batches)
        self.print(describe(self.model, str(self.trainer.precision)))

    def on_train_start(self) -> None:
        """Train on with the settings that were given, not with those that the checkpoint brought."""
        if self.trainer.ckpt_path is not None:
            schedulers: Any = [each.scheduler for each in self.trainer.lr_scheduler_configs]
            put_back(self.trainer.optimizers[0], schedulers, self._optimizer_settings)

    def to(self, *args: Any, **kwargs: Any) -> "LanguageModule":
        """Move or cast; an adapter in float32 stays so where `bf16-true` casts the network around it."""
        kept = [] if self.adapter is None else [(p, p.data) for p in self.adapter.in_float32()]
        super().to(*args, **kwargs)
        for parameter, data in kept:
            parameter.data = data.to(parameter.device)
        return self

    def on_before_batch_transfer(self, batch: Mapping[str, Any], dataloader_idx: int) -> Mapping[str, Any]:
        """See `prepare_batch`."""
        return prepare_batch(batch) if "labels" in batch else batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Without waiting for the device; see `pinned`."""
        ready = pinned(batch) if device.type == "cuda" and isinstance(batch, Mapping) else batch
        return super().transfer_batch_to_device(ready, device, dataloader_idx)

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """As Lightning's; a number of the host's stays there, where Lightning would wait until the device has each."""
        if isinstance(value, int | float):
            value = torch.tensor(float(value), dtype=torch.float32)
        super().log(name, value, *args, **kwargs)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Step, and free the gradients: Lightning does that after the next forward pass, on top of its activations."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.adapter is not None:
            self.adapter.after_step(self.trainer.global_step + 1)
        if not self._is_deepspeed:
            optimizer.zero_grad(set_to_none=True)

    @property
    def ranks(self) -> Ranks:
        """The processes that have data of their own."""
        return Ranks.of(self.trainer)

    @property
    def _is_deepspeed(self) -> bool:
        """Whether gradients are nowhere to be seen: they are averaged, clipped and freed by DeepSpeed's engine."""
        return hasattr(self.trainer.strategy, "deepspeed_engine")

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Make the gradients those of the step's mean loss, and clip them; see `OptimizerStep`."""
        if self._is_deepspeed:
            if not self.trainer.fit_loop._should_accumulate():
                # The engine knows the norm once it has stepped: it is that of the step before.
                norm = self.trainer.strategy.deepspeed_engine.get_global_grad_norm()  # type: ignore[attr-defined]
                self._log_step(self.step.reduce(torch.tensor(float(norm or 0.0), device=self.device), self.ranks))
            return
        # Strategies average gradients over ranks, and Lightning divides losses by the micro-batches of a step.
        divided_by = self.ranks.count * self.trainer.accumulate_grad_batches
        totals = self.step.reduce(gradient_norm(optimizer), self.ranks, divided_by)
        if self.step.finish(optimizer, totals, gradient_clip_val, gradient_clip_algorithm):
            self._log_step(totals)
        else:
            self.tell_skipped_step()

    def tell_skipped_step(self) -> None:
        """Log and say that a step was left out; raises `UserError` where too many were."""
        self.log_counters()
        self.alert("Step left out", f"Step {self.trainer.global_step}: the loss or its gradient is not finite.")
        self.step.check()

    def alert(self, title: str, text: str) -> None:
        """Say what goes wrong, on the terminal and through loggers that can tell somebody.

        Args:
            title: what kind of thing it is, below 64 characters.
            text: what happened.
        """
        self.print(f"\n{title}. {text}")
        for logger in self.loggers:
            tell = getattr(logger, "alert", None)
            if callable(tell):
                tell(title, text)

    def _log_step(self, totals: Totals) -> None:
        self.tokens_seen += int(totals.sums["tokens"])
        metrics = self.step_metrics(totals.sums | {"grad_norm": totals.grad_norm})
        self.log("train/loss", metrics.pop("train/loss"), prog_bar=True)
        self.log_dict(metrics | {"train/lr": float(self.trainer.optimizers[0].param_groups[0]["lr"])})
        self.log_counters()

    def log_counters(self) -> None:
        """Log what only grows; `tokens` is the x-axis of all other metrics."""
        self.log("train/skipped_steps", float(self.step.num_skipped))
        self.log("tokens", torch.tensor(self.tokens_seen, dtype=torch.float64))  # float32 counts to 17 million only

    def on_validation_epoch_end(self) -> None:
        """Log what the whole set came to."""
        self.log_evaluation("val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self.log_evaluation("test")

    def log_evaluation(self, name: str) -> None:
        """Log the metrics of all batches since the last time, over all ranks, and start anew.

        Args:
            name: of the set, the beginning of the metrics' names.
        """
        metrics = self.evaluation_metrics(name)
        if not metrics:
            return
        self.log(f"{name}/loss", metrics.pop("loss"), prog_bar=True)
        self.log_dict({f"{name}/{key}": value for key, value in metrics.items()})
        self.log("tokens", torch.tensor(self.tokens_seen, dtype=torch.float64))

    def evaluation_metrics(self, name: str) -> dict[str, float]:
        """Metrics of all batches that `validation_step` saw since the last call; has at least `loss`, or is empty."""
        raise NotImplementedError

    def step_metrics(self, totals: dict[str, float]) -> dict[str, float]:
        """What to log of a step, from its sums over all ranks and `grad_norm`; has at least `train/loss`."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer is given: see `decay_groups`."""
        return decay_groups(self.model)

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule counted in its own unit."""
        optimizer = self.optimizer(self.parameter_groups())
        if isinstance(optimizer, Muon):
            check_muon(self.trainer.strategy)
            optimizer.orthogonalize(block_matrices(self))
        self._optimizer_settings = settings_of(optimizer)
        whole_run = self.trainer.estimated_stepping_batches if self.schedule.unit == "steps" else math.inf
        scheduler = self.schedule.scheduler(optimizer, float(whole_run), lambda: self.tokens_seen)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def load_tasks(self, asked: Mapping[str, Any]) -> Any:
        """Tasks to evaluate by, before training; see `modules/evaluating.py`.

        Raises:
            UserError: this is no language model, or a task cannot be used.
        """
        if self.task is not LANGUAGE:
            raise UserError(f"Evaluation asks language models, and {type(self).__name__} trains a {self.task.name}.")
        return load_tasks(self, asked)

    def evaluate_tasks(
        self, tasks: Any, asked: Mapping[str, Any], folder: Path, judge: Any = None, keep_answers: bool = False
    ) -> dict[str, float]:
        """Scores of the weights as they are; see `modules/evaluating.py`."""
        return evaluate(self, tasks, asked, folder, judge, keep_answers)

    def compare_evaluations(self, before: Path, after: Path, metrics: Collection[tuple[str, str]]) -> dict[str, Any]:
        """What changed between two evaluations, with its tests; see `modules/evaluating.py`."""
        return compare(before, after, metrics)

    def evaluation_table(self, folder: Path) -> list[dict[str, Any]]:
        """The scores that `evaluate_tasks` wrote to a folder; see `modules/evaluating.py`."""
        return table(folder)

    def save_model(self, folder: Path) -> None:
        """Write the model folder that transformers loads, or peft for an adapter; every rank calls it."""
        is_global_zero = self.trainer.is_global_zero
        save_model_folder(self.model, self.tokenizer, folder, is_global_zero=is_global_zero, adapter=self.adapter)

    def merge_adapter(self, adapter: Path, folder: Path) -> None:
        """Write the whole network, with the adapter that `save_model` wrote to `adapter` merged into it, to `folder`.

        Raises:
            UserError: the adapter is none that can be merged.
        """
        merge_folder(adapter, folder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the counters; of an adapted network keep the adapter alone."""
        state: dict[str, Any] = {"tokens_seen": self.tokens_seen, "skipped_steps": self.step.num_skipped}
        if self.adapter is not None:
            checkpoint["state_dict"] = self.adapter.select(checkpoint["state_dict"], prefix="model.")
            state["adapter"] = self.adapter.state_dict()
        state["backbone"] = self._beginning.identity
        checkpoint[STATE_KEY] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters, and refuse another model's checkpoint before anything is overwritten."""
        state = checkpoint[STATE_KEY]
        if self.trainer.training:
            self.check_beginning(state)
        if self.adapter is not None:
            self.adapter.load_state_dict(state.get("adapter"))
        if "state_dict" in checkpoint:  # DeepSpeed compares by itself
            own = self.state_dict() if self.adapter is None else self.adapter.select(self.state_dict(), prefix="model.")
            check_same_model(own, checkpoint["state_dict"])
        self.tokens_seen, self.step.num_skipped = state["tokens_seen"], state["skipped_steps"]

    def check_beginning(self, state: Mapping[str, Any]) -> None:
        """Raise `UserError` where what `on_save_checkpoint` kept is of a run that began from another network."""
        self._beginning.check(*([state["backbone"]] if "backbone" in state else []))
