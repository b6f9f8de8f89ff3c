"""Reward modelling: of two responses to a prompt, the preferred one gets the higher reward."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.adalora import orthogonality
from llm_lightning.models.adapters.adapter import fingerprint
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.heads import base_model
from llm_lightning.models.normalization import KEY, Normalization
from llm_lightning.models.rewards import prepare_texts, rewards
from llm_lightning.models.tasks import REWARD
from llm_lightning.modules.base import LanguageModule
from llm_lightning.modules.checks import check_shared_prompts, require_pairs
from llm_lightning.modules.metrics.rewards import PreferenceMetrics, Reliability, is_right
from llm_lightning.objectives.preference import BradleyTerry


class RewardModeling(LanguageModule):
    """The Bradley-Terry model of preferences over packed pairs, in full or by an adapter (`peft`).

    The reward is read at the last token of a conversation as the chat template writes it. The head begins at zero,
    unless the folder in `backbone.path` is a reward model already.

    Args:
        backbone: the network.
        optimizer: any torch optimizer by `class_path`. By default AdamW in one kernel a step, without decay, at the
            learning rate that is usual for reward models; the adapters' overlays in `configs/peft/` raise it.
        objective: what a pair costs.
        kwargs: see `LanguageModule`.
    """

    batch_kind = "preference pairs"
    task = REWARD
    divisor = "pairs"

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-5, weight_decay=0.0, fused=True),
        objective: BradleyTerry = BradleyTerry(),  # noqa: B008 (read only)
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, optimizer, **kwargs)
        self.objective = objective
        self.evaluation = PreferenceMetrics()
        self.normalization = Normalization()
        self.finished: set[int] = set()
        self._normalized_at: int | None = None

    def check(self, datamodule: LightningDataModule | None = None) -> None:
        """Find a user's mistakes before any long work starts; raises `UserError`."""
        super().check(datamodule)
        self._check_objective()
        check_shared_prompts(self.backbone, self.peft, datamodule)
        require_pairs("RewardModeling", datamodule)

    def setup(self, stage: str) -> None:
        """As every module; single answers are refused."""
        super().setup(stage)
        require_pairs("RewardModeling", getattr(self.trainer, "datamodule", None))

    def configure_model(self) -> None:
        """Build the network, and let transformers pad with the tokenizer's own token."""
        super().configure_model()
        config = base_model(self.model).config
        self.normalization = Normalization.of_config(config)
        if self.tokenizer is not None:
            config.get_text_config(decoder=True).pad_token_id = self.tokenizer.pad_token_id

    def on_before_batch_transfer(self, batch: Mapping[str, Any], dataloader_idx: int) -> Mapping[str, Any]:
        """See `prepare_texts`."""
        return prepare_texts(batch) if "input_ids" in batch else batch

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Summed loss over the micro-batch's pairs; see `LanguageModule` for its divisor."""
        chosen, rejected, losses = self._losses(batch)
        num_pairs = torch.full((), float(len(losses)), device=losses.device)
        loss = losses.sum() + orthogonality(self.model) * num_pairs
        decided = ~batch["ties"]
        self.step.collect(
            loss=loss,
            nll=losses.sum(),
            pairs=num_pairs,
            decided=decided.sum(),
            right=is_right(chosen, rejected)[decided].sum(),
            margin=(chosen - rejected)[decided].sum(),
            reward=(chosen + rejected).sum() / 2,
            tokens=torch.full((), float(batch["input_ids"].numel()), device=losses.device),
        )
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add the batch to the running metrics."""
        chosen, rejected, losses = self._losses(batch)
        self.evaluation.update(chosen, rejected, losses, batch)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """Score conversations: each record with its `reward`, as the network gives it, and the same normalized.

        Batches whose records are all in `finished` are not scored again.
        """
        if "unfit" in batch:
            rows = [(index, record | {"reward": None, "error": reason}) for index, record, reason in batch["unfit"]]
        elif self.finished.issuperset(batch["indices"]):
            return []
        else:
            values = rewards(self.model, batch)["ends"]
            pairs = zip(values.tolist(), self.normalization(values).tolist(), strict=True)
            scores = [{"reward": reward, "normalized_reward": normalized} for reward, normalized in pairs]
            scored = zip(batch["indices"], batch["records"], scores, strict=True)
            rows = [(index, record | score) for index, record, score in scored]
        return [{"index": index, "row": row} for index, row in rows if index not in self.finished]

    def prediction_key(self) -> str:
        """Names what would come out of `predict`: weights, conversations and how they are written down."""
        datamodule: Any = getattr(self.trainer, "datamodule")  # noqa: B009 (Lightning does not declare it)
        return f"{fingerprint(self.model)} {self.normalization} {datamodule.predict_dataloader().key}"

    def step_metrics(self, totals: dict[str, float]) -> dict[str, float]:
        """Loss, accuracy, margin and mean reward of the step, over all ranks, and its gradient norm."""
        num_pairs, decided = max(totals["pairs"], 1), max(totals["decided"], 1)
        return {
            "train/loss": totals["nll"] / num_pairs,
            "train/accuracy": totals["right"] / decided,
            "train/margin": totals["margin"] / decided,
            "train/reward_mean": totals["reward"] / num_pairs,
            "train/pairs": totals["pairs"],
            "train/grad_norm": totals["grad_norm"],
        }

    def evaluation_metrics(self, name: str) -> dict[str, float]:
        """See `PreferenceMetrics`; what validates in a fit is the reference for normalization too."""
        metrics, normalization = self.evaluation.compute()
        if metrics and name == "val" and not self.trainer.sanity_checking:
            self.normalization, self._normalized_at = normalization, self.trainer.global_step
        return metrics

    def reliability(self) -> Reliability | None:
        """How often the network was right at each confidence, in the last validation; None before the first."""
        return self.evaluation.reliability

    def save_model(self, folder: Path) -> None:
        """Write the model folder with its normalization, measured at these very weights; every rank calls it."""
        self._normalize()
        setattr(base_model(self.model).config, KEY, self.normalization.as_dict())
        super().save_model(folder)
        if self.trainer.is_global_zero and self.adapter is not None:
            self.normalization.save(folder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the normalization too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["normalization"] = self.normalization.as_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the normalization."""
        super().on_load_checkpoint(checkpoint)
        self.normalization = Normalization(**checkpoint["normalization"])

    def _losses(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        values = rewards(self.model, batch)
        chosen, rejected = values["chosen_ends"], values["rejected_ends"]
        losses = self.objective(
            chosen,
            rejected,
            ties=batch["ties"],
            margins=batch["margins"],
            length_difference=batch["chosen_lengths"] - batch["rejected_lengths"],
        )
        return chosen, rejected, losses

    def _check_objective(self) -> None:
        for name, most in (("label_smoothing", 0.5), ("centering", None), ("length_penalty", None)):
            value = getattr(self.objective, name)
            if value < 0 or (most is not None and value >= most):
                below = f" and below {most}" if most is not None else ""
                raise UserError(f"model.objective.{name}={value} must be at least 0{below}.")

    @torch.no_grad()
    def _normalize(self) -> None:
        """Measure the rewards of the reference set, unless the last validation did so at these very weights."""
        reference = getattr(getattr(self.trainer, "datamodule", None), "reference_dataloader", None)
        # Who stops a run waits for seconds, not for a pass over the reference set: the last validation's has to do.
        if reference is None or self._normalized_at == self.trainer.global_step or self.trainer.should_stop:
            return
        was_training = self.model.training
        self.model.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        for batch in reference():
            batch = self.trainer.strategy.batch_to_device(prepare_texts(batch))
            with self.trainer.precision_plugin.forward_context():
                values = torch.cat(list(rewards(self.model, batch).values())).double()
            sums += torch.stack([torch.tensor(len(values)).to(values), values.sum(), values.square().sum()])
        self.model.train(was_training)
        sums = self.ranks.sum(sums)
        self.normalization, self._normalized_at = Normalization.of_sums(*sums.tolist()), self.trainer.global_step
