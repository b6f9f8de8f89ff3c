"""What objectives share that predict single tokens: their loss, and what is said of it."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torchmetrics import SumMetric

from llm_lightning.errors import UserError
from llm_lightning.models.heads import language_loss
from llm_lightning.modules.base import LanguageModule
from llm_lightning.modules.metrics.sources import SourceLosses
from llm_lightning.objectives.language import TokenLoss


class TokenPrediction(LanguageModule):
    """Cross-entropy of single tokens.

    Args:
        z_loss: factor on log(Z)^2, against drifting logits (PaLM, arXiv:2204.02311, uses 1e-4).
        label_smoothing: share of each target that is spread over the whole vocabulary (arXiv:1512.00567); metrics and
            validation are without.
        kwargs: see `LanguageModule`.
    """

    def __init__(self, *args: Any, z_loss: float = 0.0, label_smoothing: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.z_loss = z_loss
        self.label_smoothing = label_smoothing
        # Sums in float64: a validation set has more tokens than float32 has integers.
        self.evaluation: Any = torch.nn.ModuleDict(
            {name: SumMetric().set_dtype(torch.float64) for name in ("nll", "correct", "tokens", "bytes")}
        )
        self.source_losses = SourceLosses(())

    def setup(self, stage: str) -> None:
        """Take the sources that validate from the DataModule, too."""
        super().setup(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        self.source_losses = SourceLosses(getattr(datamodule, "val_source_names", ()))

    def check(self, datamodule: LightningDataModule | None = None) -> None:
        """Find a user's mistakes before any long work starts; raises `UserError`."""
        super().check(datamodule)
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"model.label_smoothing={self.label_smoothing} must be at least 0 and below 1.")

    def batch_loss(self, batch: dict[str, Any], z_loss: float = 0.0, label_smoothing: float = 0.0) -> TokenLoss:
        """Summed loss of a prepared batch."""
        return language_loss(self.model, batch, z_loss, label_smoothing)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Summed loss over the micro-batch's trained tokens; see `LanguageModule` for its divisor."""
        loss, nll, correct, balance = self.batch_loss(batch, self.z_loss, self.label_smoothing)
        sums = {} if balance is None else {"balance": balance}
        self.step.collect(
            loss=loss,
            nll=nll,
            correct=correct,
            tokens=self._num_tokens(batch),
            bytes=self._num_bytes(batch["targets"]),
            **sums,
        )
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add the batch to the running sums."""
        _, nll, correct, _ = self.batch_loss(batch)
        self.evaluation["nll"].update(nll)
        self.evaluation["correct"].update(correct)
        self.evaluation["tokens"].update(self._num_tokens(batch))
        self.evaluation["bytes"].update(self._num_bytes(batch["targets"]))
        if "source_number" in batch:
            self.source_losses.update(batch["source_number"], nll, self._num_tokens(batch))

    def step_metrics(self, totals: dict[str, float]) -> dict[str, float]:
        """Loss, perplexity, token accuracy and bits per byte of the step, over all ranks, and its gradient norm; of a
        mixture `aux_loss`, what of the trained loss balances its load.
        """
        metrics = _language_metrics(totals) | {"grad_norm": totals["grad_norm"]}
        if "balance" in totals:
            metrics["aux_loss"] = totals["balance"] / max(totals["tokens"], 1)
        return {f"train/{name}": value for name, value in metrics.items()}

    def evaluation_metrics(self, name: str) -> dict[str, float]:
        """Loss, perplexity, token accuracy and bits per byte of the whole set, and each source's loss in it."""
        sums = {key: float(metric.compute()) for key, metric in self.evaluation.items()}
        for metric in self.evaluation.values():
            metric.reset()
        return _language_metrics(sums) | self.source_losses.compute() if sums["tokens"] else {}

    def _num_tokens(self, batch: dict[str, Any]) -> Tensor:
        """() tokens in the loss."""
        return torch.full((), float(len(batch["targets"])), device=self.device)

    def _num_bytes(self, targets: Tensor) -> Tensor:
        """() UTF-8 bytes of the text that is predicted; 0 where bits per byte say nothing."""
        return torch.zeros((), device=self.device)


def _language_metrics(sums: dict[str, float]) -> dict[str, float]:
    num_tokens = max(sums["tokens"], 1)
    loss = sums["nll"] / num_tokens
    metrics = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": sums["correct"] / num_tokens,
    }
    if sums["bytes"]:
        # Independent of the tokenizer, so that models with different vocabularies compare.
        metrics["bits_per_byte"] = sums["nll"] / math.log(2) / sums["bytes"]
    return metrics
