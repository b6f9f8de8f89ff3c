"""Distillation: a student learns what a teacher finds likely, token by token, and not the text's own tokens alone."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torchmetrics import SumMetric

from llm_lightning.models.backbone import Backbone
from llm_lightning.models.loading.identity import Beginning
from llm_lightning.modules.base import STATE_KEY
from llm_lightning.modules.distillation.checks import (
    check_objective,
    check_same_teachers,
    check_teachers,
    check_tokens,
    check_weights,
)
from llm_lightning.modules.distillation.losses import distillation_loss
from llm_lightning.modules.sft import SupervisedFinetuning
from llm_lightning.objectives.distillation import DistillationLoss, DistillationSums


class Distillation(SupervisedFinetuning):
    """Learns from one or several frozen networks beside the student, on texts or on conversations.

    The loss is mixed with that of the text itself (`objective.labels_weight`). `train/loss` and `val/loss` are the
    next-token loss, as in fine-tuning, so that runs with and without a teacher compare; `divergence` is how far student
    and teacher are apart, in nats a token. Teachers are in no checkpoint.

    Args:
        backbone: the student.
        teacher: the network to learn from: a folder, hub id or .gguf, in any `dtype`, quantized too. Its tokens have to
            be the student's, and on conversations its chat template.
        ensemble: more teachers, whose distributions are averaged with the teacher's.
        weights: of `teacher` and of those in `ensemble`, in this order; by default all are equal.
        optimizer: see `SupervisedFinetuning`.
        objective: what a token costs.
        kwargs: see `SupervisedFinetuning`.
    """

    def __init__(
        self,
        backbone: Backbone,
        teacher: Backbone,
        ensemble: list[Backbone] | None = None,
        weights: list[float] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=2e-5, weight_decay=0.0, fused=True),
        objective: DistillationLoss = DistillationLoss(),  # noqa: B008 (read only)
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone=backbone, optimizer=optimizer, **kwargs)
        self.objective = objective
        self.teachers = [teacher, *(ensemble or [])]
        self.teacher_weights = weights
        self.evaluation["divergence"] = SumMetric().set_dtype(torch.float64)
        self._networks: list[Any] = []  # a list: no submodules, which would be in the checkpoint
        self._identities = [Beginning(each.path) for each in self.teachers]

    def check(self, datamodule: LightningDataModule | None = None) -> None:
        """Find a user's mistakes before any long work starts; raises `UserError`."""
        super().check(datamodule)
        check_objective(self.objective, self.z_loss)
        check_weights(self.teacher_weights, len(self.teachers))
        check_teachers(self.teachers, getattr(datamodule, "seq_len", None))

    def setup(self, stage: str) -> None:
        """Take the tokenizer from the DataModule, and compare the teachers' with it."""
        super().setup(stage)
        kind = getattr(getattr(self.trainer, "datamodule", None), "batch_kind", None)
        for backbone in self.teachers if stage != "predict" else ():
            check_tokens(backbone, self.tokenizer, writes_turns=kind == self.batch_kind)

    def configure_model(self) -> None:
        """Build the student, and beside it the teachers, which nothing that writes needs."""
        if self.model is not None:
            return
        super().configure_model()
        if self._trainer is not None and self.trainer.predicting:
            return
        for backbone in self.teachers:
            network = self.build_network(backbone).requires_grad_(False).eval()
            if self.sharding is not None:
                self.shard_and_load(backbone, network)
            self._networks.append(network)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Summed loss over the micro-batch's trained tokens; see `LanguageModule` for its divisor."""
        sums, balance = self._losses(batch)
        self.step.collect(
            loss=sums.loss,
            nll=sums.nll,
            correct=sums.correct,
            divergence=sums.divergence,
            tokens=self._num_tokens(batch),
            bytes=self._num_bytes(batch["targets"]),
            **({} if balance is None else {"balance": balance}),
        )
        return sums.loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add the batch to the running sums."""
        sums, _ = self._losses(batch)
        self.evaluation["nll"].update(sums.nll)
        self.evaluation["correct"].update(sums.correct)
        self.evaluation["divergence"].update(sums.divergence)
        self.evaluation["tokens"].update(self._num_tokens(batch))
        self.evaluation["bytes"].update(self._num_bytes(batch["targets"]))

    def step_metrics(self, totals: dict[str, float]) -> dict[str, float]:
        """As in fine-tuning, and the divergence."""
        metrics = super().step_metrics(totals)
        return metrics | {"train/divergence": totals["divergence"] / max(totals["tokens"], 1)}

    def evaluation_metrics(self, name: str) -> dict[str, float]:
        """As in fine-tuning, and the divergence."""
        divergence, tokens = (float(self.evaluation[key].compute()) for key in ("divergence", "tokens"))
        metrics = super().evaluation_metrics(name)
        return metrics | {"divergence": divergence / tokens} if metrics else {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep which teachers there were."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[STATE_KEY]["teachers"] = [each.identity for each in self._identities]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the student, and refuse other teachers."""
        super().on_load_checkpoint(checkpoint)
        check_same_teachers(checkpoint[STATE_KEY]["teachers"], self._identities)

    def _losses(self, batch: dict[str, Any]) -> tuple[DistillationSums, Tensor | None]:
        device = next(self.model.parameters()).device
        for network in self._networks:
            network.to(device)
        weights = self.teacher_weights or [1.0] * len(self.teachers)
        shares = [weight / sum(weights) for weight in weights]
        return distillation_loss(self.model, self._networks, shares, batch, self.objective)
