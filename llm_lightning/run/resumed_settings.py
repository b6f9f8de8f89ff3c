"""What a setting that was changed does to a run that goes on: it takes effect, is refused, or does not matter."""

from collections.abc import Iterator, Mapping
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from llm_lightning.errors import UserError


class On(Enum):
    """What becomes of a changed setting on resuming."""

    EFFECT = "takes effect"
    REFUSED = "refused"
    CONTENT = "looked into"
    """Paths: the run goes on where they hold the same network or data, wherever those lie now."""
    FREE = "does not matter"


# For each kind the settings' names, as on the command line; of several that fit, the longest decides.
TABLE: Mapping[On, tuple[str, ...]] = {
    On.EFFECT: (
        "model.backbone.dropout", "model.backbone.attention",
        "model.optimizer.lr", "model.optimizer.weight_decay", "model.optimizer.betas", "model.optimizer.eps",
        "model.schedule.*", "model.max_skipped_steps", "model.z_loss", "model.label_smoothing",
        "model.generation", "model.generation.*",
        "model.objective.*", "model.displacement", "model.displacement.*", "model.weights",
        "model.teacher", "model.teacher.*", "model.teacher_logprobs", "model.top_k", "model.context",
        "model.on_policy_share", "model.sampling.*",
        "model.rewards", "model.rewards.*", "model.rollout.*", "model.engine", "model.engine.*", "model.advantages.*",
        "model.critic.coef", "model.critic.clip_range", "model.critic.head_lr", "model.kl.*", "model.update.*",
        "model.guards.*",
        "data.batch_size", "data.length_curriculum", "data.length_curriculum.*", "data.val_path", "data.val_columns",
        "data.val_columns.*", "data.val_text_column",
        "trainer.precision", "trainer.max_epochs", "trainer.min_epochs", "trainer.max_steps", "trainer.min_steps",
        "trainer.max_time", "trainer.limit_val_batches", "trainer.val_check_interval",
        "trainer.check_val_every_n_epoch", "trainer.accumulate_grad_batches", "trainer.gradient_clip_val",
        "trainer.gradient_clip_algorithm", "trainer.sync_batchnorm", "trainer.plugins", "trainer.plugins.*",
        "trainer.reload_dataloaders_every_n_epochs", "trainer.callbacks", "trainer.callbacks.*",
    ),
    On.REFUSED: (
        "model", "model.backbone.config", "model.backbone.config.*", "model.backbone.dtype",
        "model.backbone.quantization", "model.backbone.quantization.*", "model.backbone.new_tokens",
        "model.optimizer", "model.optimizer.*", "model.peft", "model.peft.*", "model.advantages.kind",
        "model.critic.kind", "model.critic.path",
        "data", "data.column", "data.columns", "data.columns.*", "data.text_column", "data.template", "data.turns",
        "data.reasoning", "data.too_long", "data.labels", "data.score_margins", "data.share_prompts", "data.chat",
        "data.max_prompt_tokens", "data.vocab_size", "data.seq_len", "data.document_mask", "data.val_share",
        "data.seed", "data.temperature", "data.fim", "data.fim.*", "data.masking", "data.masking.*",
        "data.spans", "data.spans.*", "data.window_tokens", "data.shuffle", "data.name", "data.split",
        "seed_everything",
        "trainer.overfit_batches", "trainer.limit_train_batches", "trainer.callbacks.Pruning",
        "trainer.callbacks.Pruning.*", "trainer.callbacks.EWC.path", "trainer.callbacks.EWC.num_pieces",
        "trainer.callbacks.EWC.piece_len", "trainer.callbacks.QuantizationAwareTraining",
        "trainer.callbacks.QuantizationAwareTraining.*", "trainer.callbacks.LossWeightedMixture",
    ),
    On.CONTENT: (
        "model.backbone.path", "model.teacher.path", "model.ensemble", "model.endpoint", "model.endpoint.*",
        "tokenizer", "data.tokenizer", "data.path",
        "data.sources", "data.sources.*", "data.on_bad_record", "data.data", "data.generators", "data.generators.*",
        "data.filters", "data.filters.*", "data.engine", "data.engine.*", "data.share", "data.folder",
    ),
    On.FREE: (
        "model.backbone.activation_checkpointing", "model.backbone.compile", "model.backbone.allow_pickle",
        "model.backbone.trust_remote_code", "model.optimizer.fused", "model.optimizer.foreach",
        "model.optimizer.capturable", "model.optimizer.differentiable", "model.update.micro_batch_tokens",
        "model.rollout.num_slots", "model.reference",
        "data.prompt_len", "data.predict_path", "data.num_workers", "data.cache_dir", "data.patience", "data.settle",
        "data.idle",
        "trainer.accelerator", "trainer.strategy", "trainer.strategy.*", "trainer.devices", "trainer.num_nodes",
        "trainer.logger", "trainer.logger.*", "trainer.fast_dev_run", "trainer.limit_test_batches",
        "trainer.limit_predict_batches", "trainer.num_sanity_val_steps", "trainer.log_every_n_steps",
        "trainer.enable_*", "trainer.deterministic", "trainer.benchmark", "trainer.inference_mode",
        "trainer.use_distributed_sampler", "trainer.profiler", "trainer.profiler.*", "trainer.detect_anomaly",
        "trainer.barebones", "trainer.default_root_dir", "trainer.model_registry",
        *(f"trainer.callbacks.{name}{rest}" for rest in ("", ".*") for name in (
            "Heartbeat", "RandomState", "Throughput", "TrainingProgress", "Samples", "RolloutTable", "Predictions",
            "WandbRunId", "ModelFolder", "Curves", "Reliability", "RunSummary", "RunCheckpoint", "GracefulStop",
            "Evaluation",
        )),
        "config", "resume", "rounds", "check_memory", "check_ranks", "ckpt_path", "weights_only",
    ),
}  # fmt: skip
ABSENT = "absent"


def kind_of(name: str) -> On | None:
    """What a change of this setting does; None for one that the table has not."""
    found = [(len(p), kind) for kind, patterns in TABLE.items() for p in patterns if fnmatchcase(name, p)]
    return max(found, key=lambda one: one[0])[1] if found else None


def flat(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting by its name on the command line; a class's own value is its name, and what a
    `SyntheticDataModule` is put around counts as the data.
    """
    if isinstance(config, Mapping) and "class_path" in config:
        yield name, config["class_path"]
        config = {key: value for key, value in config.items() if key != "class_path"}
        for value in config.values():
            yield from flat(value or {}, name)
    elif isinstance(config, Mapping) and config:
        for key, value in config.items():
            yield from flat(value, f"{name}.{key}".lstrip(".").replace("data.data.", "data."))
    elif isinstance(config, list) and any(isinstance(one, Mapping) and "class_path" in one for one in config):
        for one in config:
            yield from flat(one, f"{name}.{str(one['class_path']).rsplit('.', 1)[-1]}")
    elif config != {}:
        yield name, config


def changes(before: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, each with its former and its present value; of those that do not matter none.

    Where only one of the two has a setting, the version that wrote it has it, unless what is named there is the user's
    own: a class, or an entry of a list of them.
    """
    old, new = dict(flat(before)), dict(flat(now))
    found = {}
    for name in old | new:
        values = old.get(name, ABSENT), new.get(name, ABSENT)
        if values[0] == values[1] or kind_of(name) in (None, On.FREE):
            continue
        if ABSENT not in values or name.startswith(("trainer.callbacks.", "model.rewards.")):
            found[name] = values
    return found


def refuse(found: Mapping[str, tuple[Any, Any]], folder: Any) -> None:
    """Raise `UserError` for the first setting that must not change while a run goes on."""
    for name, (before, now) in found.items():
        if kind_of(name) is On.REFUSED:
            raise UserError(
                f"{name}: the run in {folder} was begun with {in_words(before)}, and cannot go on with "
                f"{in_words(now)}. Give the former value, another folder by --trainer.default_root_dir, or start over "
                "with --resume false."
            )


def in_words(value: Any) -> str:
    """A value in a line."""
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
