"""Distillation: a student learns what a teacher finds likely, token by token, and not the text's own tokens alone."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torchmetrics import SumMetric

from llm_lightning.models.backbone import Backbone
from llm_lightning.models.generation import end_tokens
from llm_lightning.models.heads import base_model, prepare_batch
from llm_lightning.models.loading.content import files_key
from llm_lightning.models.loading.identity import Beginning
from llm_lightning.modules.base import STATE_KEY
from llm_lightning.modules.distillation.checks import (
    check_cache,
    check_context,
    check_endpoint,
    check_itself,
    check_objective,
    check_on_policy,
    check_same_teachers,
    check_strategy,
    check_teachers,
    check_tokens,
    check_top_k,
    check_turns,
    check_weights,
)
from llm_lightning.modules.distillation.context import Context, read_context
from llm_lightning.modules.distillation.endpoint import Endpoint, likeliest_by_endpoint
from llm_lightning.modules.distillation.losses import likeliest, run_teachers, student_loss
from llm_lightning.modules.distillation.on_policy import (
    OwnReplies,
    without_labels_loss,
    written_metrics,
    written_sums,
)
from llm_lightning.modules.distillation.teacher_cache import CachedTeacher, Part, Shape, TeacherCache, cache_key
from llm_lightning.modules.reference import Reference, can_take_adapter_off
from llm_lightning.modules.sft import SupervisedFinetuning
from llm_lightning.objectives.distillation import DistillationLoss, DistillationSums, Teacher, TeacherChunk
from llm_lightning.objectives.language import IGNORE_INDEX
from llm_lightning.rollouts import Sampling

R = TypeVar("R")
TRAIN, VAL = "train", "val"


class Distillation(SupervisedFinetuning):
    """Learns from one or several frozen networks beside the student, on texts or on conversations.

    The loss is mixed with that of the text itself (`objective.labels_weight`). `train/loss` and `val/loss` are the
    next-token loss, as in fine-tuning, so that runs with and without a teacher compare; `divergence` is how far student
    and teacher are apart, in nats a token. Teachers are in no checkpoint.

    Args:
        backbone: the student.
        teacher: the network to learn from: a folder, hub id or .gguf, in any `dtype`, quantized too. Its tokens have to
            be the student's, and on conversations its chat template. None, with a `context`: the student itself as it
            is before training; with an adapter that is the network without it, so that there is no second one.
        endpoint: in the place of a teacher a server that says how likely given tokens are, and fills the cache:
            `datamodules.OpenAIEngine` with the address of vLLM.
        ensemble: more teachers, whose distributions are averaged with the teacher's.
        weights: of `teacher` and of those in `ensemble`, in this order; by default all are equal.
        context: what teachers read before every document and the student does not (see `Context`): of conversations
            turns, `[{role: user, content: ...}, {role: assistant, content: ...}]`, or a text, which is a system prompt;
            of texts a text. It takes room in the teachers' contexts, beside a row.
        teacher_logprobs: `live` runs the teachers beside the student. `cached` computes once what they find likely,
            into the data's cache, before training, which then needs no teacher.
        top_k: of the cache, next tokens that are named of each trained one; the others are one more outcome. 32 hold
            nearly all of the probability, and take 192 or 256 bytes a trained token.
        on_policy_share: with this probability a conversation gets its last reply in each step anew, written by the
            student as it is then, and learns there from the teacher alone (GKD, arXiv:2306.13649).
        sampling: how the student writes; replies are cut at `max_new_tokens`.
        optimizer: see `SupervisedFinetuning`.
        objective: what a token costs.
        kwargs: see `SupervisedFinetuning`.
    """

    def __init__(
        self,
        backbone: Backbone,
        teacher: Backbone | None = None,
        endpoint: Endpoint | None = None,
        ensemble: list[Backbone] | None = None,
        weights: list[float] | None = None,
        context: list[dict[str, str]] | str | None = None,
        teacher_logprobs: Literal["live", "cached"] = "live",
        top_k: int = 32,
        on_policy_share: float = 0.0,
        sampling: Sampling = Sampling(),  # noqa: B008 (read only)
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=2e-5, weight_decay=0.0, fused=True),
        objective: DistillationLoss = DistillationLoss(),  # noqa: B008 (read only)
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone=backbone, optimizer=optimizer, **kwargs)
        self.objective = objective
        self.endpoint = endpoint
        self.learns_from_itself = teacher is None and endpoint is None
        first = teacher or (backbone if endpoint is None else None)
        self.teachers = [each for each in (first, *(ensemble or [])) if each is not None]
        self.teacher_weights = weights
        self.teacher_logprobs, self.top_k = teacher_logprobs, top_k
        self.on_policy_share, self.sampling = on_policy_share, sampling
        self.evaluation["divergence"] = SumMetric().set_dtype(torch.float64)
        self.context = context
        self._context: Context | None = None
        self._networks: list[Any] = []  # a list: no submodules, which would be in the checkpoint
        self._cache: TeacherCache | None = None
        named = [] if endpoint is None else [f"endpoint {endpoint.model}"]
        self._identities = [Beginning(path) for path in (*(each.path for each in self.teachers), *named)]

    def check(self, datamodule: LightningDataModule | None = None) -> None:
        """Find a user's mistakes before any long work starts; raises `UserError`."""
        super().check(datamodule)
        check_objective(self.objective, self.z_loss, self.label_smoothing)
        check_weights(self.teacher_weights, len(self.teachers))
        if self.endpoint is not None:
            check_endpoint(self.endpoint, self.teachers, self.teacher_logprobs, self.objective)
        check_turns(self.context)
        check_itself(self.learns_from_itself, self.context, self.backbone)
        check_teachers(self.teachers, getattr(datamodule, "seq_len", None))
        networks = [self.backbone, *self.teachers]
        check_on_policy(self.on_policy_share, self.sampling, self.teacher_logprobs, networks, datamodule)
        if self.teacher_logprobs == "cached":
            check_cache(self.top_k, datamodule)

    def setup(self, stage: str) -> None:
        """Take the tokenizer from the DataModule, and compare the teachers' with it."""
        super().setup(stage)
        kind = getattr(self._data, "batch_kind", None)
        if stage == "predict":
            return
        if self.on_policy_share and stage == "fit":
            check_strategy(self.trainer)
        if self._data is not None and (self.teacher_logprobs == "cached" or self.on_policy_share):
            self._data.numbers_rows = True
        for backbone in self.teachers[self.learns_from_itself :]:
            check_tokens(backbone, self.tokenizer, writes_turns=kind == self.batch_kind)
        if self.context:
            self._context = read_context(self.context, self.tokenizer, is_conversation=kind == self.batch_kind)
            check_context(self._context, self.teachers, getattr(self._data, "seq_len", None), self._room_to_write)

    def configure_model(self) -> None:
        """Build the student, and beside it the teachers, which nothing that writes needs."""
        if self.model is not None:
            return
        super().configure_model()
        if self._trainer is not None and self.trainer.predicting:
            return
        if self.teacher_logprobs == "cached":
            self._cache = self._open_cache()
        else:
            self._build_teachers()

    def on_before_batch_transfer(self, batch: Mapping[str, Any], dataloader_idx: int) -> Mapping[str, Any]:
        """See `prepare_batch`; with what the teachers find likely, where that is known, or else what they read."""
        if self.on_policy_share and self.trainer.training:
            batch = self._with_own_replies(batch)
        prepared = without_labels_loss(dict(super().on_before_batch_transfer(batch, dataloader_idx)))
        if "labels" not in batch or (self._cache is None and self._context is None):
            return prepared
        if self._cache is None:
            return {**prepared, "teacher": self._as_teachers_read(batch)}
        known = self._cache.look_up(TRAIN if self.trainer.training else VAL, batch)
        return {**prepared, "teacher_logprobs": known.logprobs, "teacher_ids": known.ids}

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
            **(written_sums(batch) if self.on_policy_share else {}),
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
        """As in fine-tuning, of the data's own texts, and the divergence, of all."""
        divergence = {"train/divergence": totals["divergence"] / max(totals["tokens"], 1)}
        if not self.on_policy_share:
            return super().step_metrics(totals) | divergence
        divergence |= written_metrics(totals)
        if not totals["labelled"]:
            return {"train/loss": divergence["train/divergence"], "train/grad_norm": totals["grad_norm"], **divergence}
        return super().step_metrics(totals | {"tokens": totals["labelled"]}) | divergence

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
        if "teacher_ids" in batch:
            known = CachedTeacher(batch["teacher_logprobs"], batch["teacher_ids"])
            return student_loss(self.model, batch, known, self.objective)
        read = batch.get("teacher", batch)
        return self._run_teachers(read, lambda known: student_loss(self.model, batch, known, self.objective))

    def _num_bytes(self, targets: Tensor) -> Tensor:
        return super()._num_bytes(targets[targets != IGNORE_INDEX] if self.on_policy_share else targets)

    def _with_own_replies(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        own = OwnReplies(self.on_policy_share, self.sampling, getattr(self._data, "seed", 0))
        ends = end_tokens(base_model(self.model).generation_config)
        with self.trainer.precision_plugin.forward_context():
            batch = own.put_in(batch, self.trainer.global_step, self.model, ends)
        torch.clear_autocast_cache()
        return batch

    def _as_teachers_read(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return prepare_batch(batch) if self._context is None else self._context.before(batch)

    def _run_teachers(self, batch: Mapping[str, Any], use: Callable[[Teacher], R]) -> R:
        device = next(self.model.parameters()).device
        for network in self._networks:
            if not isinstance(network, Reference):
                network.to(device)
        return run_teachers(self._networks, self._shares, batch, self._vocab_size, use)

    @property
    def _room_to_write(self) -> int:
        return self.sampling.max_new_tokens if self.on_policy_share else 0

    @property
    def _shares(self) -> list[float]:
        weights = self.teacher_weights or [1.0] * len(self.teachers)
        return [weight / sum(weights) for weight in weights]

    @property
    def _vocab_size(self) -> int:
        return int(base_model(self.model).config.get_text_config(decoder=True).vocab_size)

    @property
    def _data(self) -> Any:
        datamodule = getattr(self.trainer, "datamodule", None)
        return getattr(datamodule, "data", datamodule)  # a DataModule around another one

    def _build_teachers(self) -> None:
        takes_adapter_off = self.learns_from_itself and can_take_adapter_off(self.peft)
        if takes_adapter_off:
            self._networks.append(Reference(self.model))
        for backbone in self.teachers[takes_adapter_off:]:
            network = self.build_network(backbone).requires_grad_(False).eval()
            if self.sharding is not None:
                self.shard_and_load(backbone, network)
            self._networks.append(network)

    def _open_cache(self) -> TeacherCache:
        """What the teachers find likely, computed where it is missing, before anything trains."""
        data, trainer = self._data, self.trainer
        shape = Shape(data.seq_len, self.top_k, self._vocab_size)
        check_top_k(self.top_k, shape.vocab_size)
        parts = [Part(name, data.num_rows(name), partial(data.in_order, name)) for name in (TRAIN, VAL)]
        files: list[Any] = [[files_key(str(each.path)), each.dtype, each.quantization] for each in self.teachers]
        if self.endpoint is not None:
            files.append([self.endpoint.model, self.endpoint.settings().get("url")])
        rows = [data.rows_name(part.name) for part in parts]
        context = [] if self._context is None else [[part.tolist() for part in self._context]]
        key = cache_key(files, self._shares, rows, shape, self.objective.temperature, str(trainer.precision), *context)
        barrier = partial(trainer.strategy.barrier, "teacher cache")
        cache = TeacherCache(data.root / "teacher" / key, parts, shape, self.ranks, barrier, trainer.is_global_zero)
        if missing := cache.missing():
            self.print(f"Teacher: computing what it finds likely of {missing:,} rows into {cache.folder}")
            self._build_teachers()
            cache.fill(self._likeliest, shown=trainer.is_global_zero)
            self._networks.clear()
            if self.endpoint is not None:
                self.endpoint.release()
        self.print(f"Teacher: what it finds likely, from {cache.in_words()}")
        return cache

    def _likeliest(self, batch: Mapping[str, Any]) -> TeacherChunk:
        if self.endpoint is not None:
            shape = Shape(self._data.seq_len, self.top_k, self._vocab_size)
            return likeliest_by_endpoint(self.endpoint, batch, self._context, self.tokenizer, shape)
        prepared = move_data_to_device(self._as_teachers_read(batch), next(self.model.parameters()).device)
        temperature, count = self.objective.temperature, len(prepared["target_positions"])
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            found = self._run_teachers(
                prepared, lambda known: likeliest(known, count, self.top_k, temperature, self._vocab_size)
            )
        torch.clear_autocast_cache()
        return found
