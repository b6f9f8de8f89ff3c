"""Preference optimization: preferred answers become likelier than rejected ones, without a reward model or sampling."""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.adalora import orthogonality
from llm_lightning.models.answers import answer_logprobs
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.generation import end_of_turn
from llm_lightning.models.heads import base_model
from llm_lightning.models.loading.content import content_key
from llm_lightning.models.rewards import prepare_texts
from llm_lightning.modules.base import STATE_KEY, LanguageModule
from llm_lightning.modules.checks import check_shared_prompts, require_pairs
from llm_lightning.modules.preference import checks
from llm_lightning.modules.preference.displacement import Displacement, Watch
from llm_lightning.modules.preference.metrics import PreferenceSums, Scored, metrics_of
from llm_lightning.modules.preference.reference_cache import Part, ReferenceCache, cache_key
from llm_lightning.modules.reference import Reference, can_take_adapter_off, frozen_copy, switch_off_dropout
from llm_lightning.modules.step import Totals
from llm_lightning.objectives.preference_optimization import Answers, PreferenceLoss

TRAIN, VAL = "train", "val"


class Losses(NamedTuple):
    """Of a batch.

    Args:
        total: () the sum over its examples, with gradient.
        num_examples: () pairs, or KTO's answers.
        scored: its answers.
    """

    total: Tensor
    num_examples: Tensor
    scored: Scored


class PreferenceOptimization(LanguageModule):
    """DPO and its kin over packed pairs, in full or by an adapter (`peft`).

    The reference is the policy as it began: the network with its adapter off, else a frozen copy. ORPO and SimPO have
    none. Ties say nothing of an answer and are in no loss. KTO learns from single answers with a label, too.

    Args:
        backbone: the policy.
        optimizer: any torch optimizer by `class_path`. By default AdamW in one kernel a step, without decay, at a
            learning rate for networks of some billion weights; small ones and adapters take more.
        objective: what a pair costs.
        displacement: what to do when chosen answers themselves become unlikely.
        reference: `live` runs the reference beside the policy. `cached` computes its log-probabilities once into the
            data's cache, before training, which then holds one network.
        kwargs: see `LanguageModule`.
    """

    batch_kind = "preference pairs"
    divisor = "examples"

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0, fused=True),
        objective: PreferenceLoss = PreferenceLoss(),  # noqa: B008 (read only)
        displacement: Displacement = Displacement(),  # noqa: B008
        reference: Literal["live", "cached"] = "live",
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, optimizer, **kwargs)
        self.objective = objective
        self.displacement, self.watch = displacement, Watch(displacement, objective.known.needs_reference)
        self.evaluation = PreferenceSums()
        self.reference = reference
        self._reference: list[Reference] = []  # a list: no submodule, which would be in the checkpoint
        self._cache: ReferenceCache | None = None
        self._kl = torch.zeros(())

    def check(self, datamodule: LightningDataModule | None = None) -> None:
        """Find a user's mistakes before any long work starts; raises `UserError`."""
        super().check(datamodule)
        checks.check_objective(self.objective)
        self.displacement.check()
        checks.check_reference(self.reference, self.objective, datamodule)
        check_shared_prompts(self.backbone, self.peft, datamodule)
        self._require_pairs(datamodule)
        if words := checks.unusual_beta(self.objective):
            rank_zero_warn(words)

    def setup(self, stage: str) -> None:
        """Take the tokenizer from the DataModule, and end texts where the answers end that are learned; single answers
        are refused where the loss compares two.
        """
        super().setup(stage)
        self._require_pairs(getattr(self.trainer, "datamodule", None))
        end = None if self.tokenizer is None else end_of_turn(self.tokenizer)
        if end is not None and end != self.tokenizer.eos_token_id:
            # A copy: the DataModule's template may write its own EOS.
            self.tokenizer = copy.deepcopy(self.tokenizer)
            self.tokenizer.eos_token = self.tokenizer.convert_ids_to_tokens(end)

    def _require_pairs(self, datamodule: Any) -> None:
        if self.objective.kind != "kto":
            require_pairs(f"model.objective.kind={self.objective.kind}", datamodule)

    def configure_model(self) -> None:
        """Build policy and reference."""
        if self.model is not None:
            return
        self.model = self.build_network(self.backbone)
        is_live = self.objective.known.needs_reference and self.reference == "live"
        wants_copy = is_live and not can_take_adapter_off(self.peft)
        frozen = frozen_copy(self.model) if wants_copy else None
        super().configure_model()
        if is_live:
            if self.sharding is not None and frozen is not None:
                self.shard_and_load(self.backbone, frozen)
            self._reference = [Reference(self.model, frozen)]
        switch_off_dropout(self)
        if self.reference == "cached":
            self._cache = self._open_cache()

    def configure_optimizers(self) -> Any:
        """As every module; a learning rate far from the known good ones is said."""
        configured = super().configure_optimizers()
        rate = float(configured["optimizer"].defaults["lr"])
        if words := checks.unusual_rate(self.objective, rate, self.peft is not None):
            rank_zero_warn(words)
        return configured

    def on_fit_start(self) -> None:
        """As every module; labels that KTO can learn little from are said."""
        super().on_fit_start()
        count = getattr(getattr(self.trainer, "datamodule", None), "num_labelled", None)
        if (
            self.objective.kind == "kto"
            and count is not None
            and (words := checks.unbalanced(self.objective, *count(TRAIN)))
        ):
            rank_zero_warn(words)

    def on_before_batch_transfer(self, batch: Mapping[str, Any], dataloader_idx: int) -> Mapping[str, Any]:
        """See `prepare_texts`; with the reference's log-probabilities where they are known."""
        return self._prepared(batch, TRAIN if self.trainer.training else VAL) if "input_ids" in batch else batch

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Summed loss over the micro-batch's pairs; see `LanguageModule` for its divisor."""
        accumulate = self.trainer.accumulate_grad_batches if self._trainer is not None else 1
        if self.objective.kind == "kto" and batch_idx % accumulate == 0:
            left = int(self.trainer.num_training_batches) - batch_idx
            self._kl = self._estimate_kl("train", min(accumulate, left))
        losses, balance = self._losses(batch)
        count = losses.num_examples
        loss = losses.total + orthogonality(self.model) * count
        if balance is not None:
            loss = loss + balance * count
        self.step.collect(
            loss=loss,
            nll=losses.total,
            examples=count,
            tokens=torch.full((), float(batch["input_ids"].numel()), device=loss.device),
            **losses.scored.sums(),
        )
        return loss

    def on_validation_epoch_start(self) -> None:
        """Estimate KTO's KL over all that validates, before its first loss."""
        if self.objective.kind == "kto":
            trainer = self.trainer
            limits = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
            self._kl = self._estimate_kl("val", int(sum(limits)))

    def on_test_epoch_start(self) -> None:
        """As in validation."""
        if self.objective.kind == "kto":
            self._kl = self._estimate_kl("val", int(sum(self.trainer.num_test_batches)))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add the batch to the running metrics."""
        losses, _ = self._losses(batch)
        self.evaluation.update(loss=losses.total, examples=losses.num_examples, **losses.scored.sums())

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Refuse: what it learned is a language model like others."""
        raise UserError(
            "PreferenceOptimization has nothing to predict: let its model folder write by --model SupervisedFinetuning "
            "--model.backbone.path RUN/model/last --data PromptDataModule."
        )

    def step_metrics(self, totals: dict[str, float]) -> dict[str, float]:
        """Means over the step's answers, over all ranks, and its gradient norm."""
        metrics = metrics_of(totals | {"loss": totals["nll"]}) | {"grad_norm": totals["grad_norm"]}
        if self.objective.kind == "kto":
            metrics["kl"] = float(self._kl)
        return {f"train/{name}": value for name, value in metrics.items()}

    def evaluation_metrics(self, name: str) -> dict[str, float]:
        """Those of the whole set, with the accuracy's interval."""
        metrics = self.evaluation.compute()
        if metrics and self.objective.kind == "kto":
            metrics["kl"] = float(self._kl)
        return metrics

    def _log_step(self, totals: Totals) -> None:
        super()._log_step(totals)
        sums = totals.sums
        if not sums["chosen_tokens"]:
            return
        nats = sums["chosen_moved" if self.watch.has_reference else "chosen_logprob"]
        if text := self.watch.look(nats / sums["chosen_tokens"]):
            self.alert("Likelihood displacement", f"Step {self.trainer.global_step}: {text}")
            self.trainer.should_stop |= self.displacement.action == "stop"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the watch has seen, and which reference it was."""
        super().on_save_checkpoint(checkpoint)
        reference = self._reference[0].fingerprint if self._reference else None
        checkpoint[STATE_KEY] |= {"displacement": self.watch.state_dict(), "reference": reference}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore that, and refuse another reference."""
        super().on_load_checkpoint(checkpoint)
        self.watch.load_state_dict((state := checkpoint[STATE_KEY])["displacement"])
        for reference in self._reference:
            reference.check(state["reference"])

    @property
    def _data(self) -> Any:
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "mismatches"):
            raise UserError("model.objective.kind=kto learns from a PreferenceDataModule: --data PreferenceDataModule.")
        return data

    def _losses(self, batch: Mapping[str, Any]) -> tuple[Losses, Tensor | None]:
        """Of a batch, and what balances a mixture's load."""
        reference = self._reference_logprobs(batch)
        logprobs, balance = answer_logprobs(self.model, batch)
        answers = Answers(logprobs, batch["num_targets"], reference)
        counts = (answers.num_tokens > 0) & ~batch["ties"].repeat_interleave(2)
        baseline = None
        if self.objective.kind == "kto":
            is_desirable = torch.arange(len(counts), device=counts.device) % 2 == 0
            kl = self._kl.to(logprobs)
            losses, examples = self.objective.of_answers(answers, is_desirable, kl), counts
            baseline = self.objective.baseline(kl)
        else:
            chosen, rejected = answers.every_other(0), answers.every_other(1)
            losses, examples = self.objective.of_pairs(chosen, rejected), counts[0::2] & counts[1::2]
        with torch.no_grad():
            moved = None if reference is None else logprobs - reference
            rewards = self.objective.rewards(answers)
        scored = Scored(logprobs.detach(), moved, rewards, answers.num_tokens, counts, baseline)
        return Losses(torch.where(examples, losses, 0.0).sum(), examples.sum().float(), scored), balance

    def _reference_logprobs(self, batch: Mapping[str, Any]) -> Tensor | None:
        """(K,) of a batch's answers; None where the loss needs none."""
        if "ref_logprobs" in batch:
            known: Tensor = batch["ref_logprobs"]
            return known
        for reference in self._reference:
            with torch.no_grad(), reference.policy() as other:
                logprobs = answer_logprobs(other, batch).logprobs
            # Autocast keeps the weights that it casts, and these have no gradient.
            torch.clear_autocast_cache()
            return logprobs
        return None

    @torch.no_grad()
    def _estimate_kl(self, part: str, count: int) -> Tensor:
        """() nats by which answers to other prompts are likelier than to the reference, a mean over `count` batches of
        each rank.
        """
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for raw in self._data.mismatches(part, count):
            batch = self.trainer.strategy.batch_to_device(self._prepared(raw, f"{part}.mismatches"))
            with self.trainer.precision_plugin.forward_context():
                reference = self._reference_logprobs(batch)
                assert reference is not None
                moved = answer_logprobs(self.model, batch).logprobs - reference
            counts = batch["num_targets"] > 0
            sums += torch.stack([(moved * counts).sum().double(), counts.sum().double()])
        torch.clear_autocast_cache()
        nats, num_answers = self.ranks.sum(sums)
        return nats / num_answers.clamp(min=1)

    def _prepared(self, batch: Mapping[str, Any], part: str) -> dict[str, Any]:
        prepared = prepare_texts(batch)
        if self._cache is not None and self._cache.values:
            prepared["ref_logprobs"] = self._cache.look_up(part, batch["numbers"])
        return prepared

    def _open_cache(self) -> ReferenceCache:
        """The reference's log-probabilities on all rows, computed where they are missing, before anything trains."""
        data, network = self._data, base_model(self.model)
        parts = []
        for name in (TRAIN, VAL):
            pairs = data.num_pairs(name)
            parts.append(Part(name, (pairs, 2), partial(data.in_order, name)))
            if self.objective.kind == "kto":
                parts.append(Part(f"{name}.mismatches", (pairs,), partial(data.mismatches, name)))
        names = None if self.adapter is None else self.adapter.base_names
        weights = network.state_dict(keep_vars=True)
        weights = weights if names is None else {names[name]: weights[name] for name in weights if name in names}
        rows = [f"{part.name} {data.rows_name(part.name.partition('.')[0])}" for part in parts]
        key = cache_key(content_key(weights), network.config, rows, str(self.trainer.precision))
        cache = ReferenceCache(data.root / "reference" / key, parts, self.trainer)
        began = Reference(self.model) if can_take_adapter_off(self.peft) else None

        @torch.no_grad()
        def logprobs(batch: Mapping[str, Any]) -> Tensor:
            prepared = move_data_to_device(prepare_texts(batch), next(self.model.parameters()).device)
            with (
                self.trainer.precision_plugin.forward_context(),
                began.policy() if began else nullcontext(self.model) as it,
            ):
                return answer_logprobs(it, prepared).logprobs

        cache.prepare(logprobs, self.print)
        torch.clear_autocast_cache()
        return cache
