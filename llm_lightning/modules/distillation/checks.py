"""A user's mistakes in the settings of a distillation: objectives out of range, and teachers that do not go with it."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer

from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.generation import TALK
from llm_lightning.models.loading.identity import Beginning
from llm_lightning.models.loading.new_tokens import read_tokenizer
from llm_lightning.modules.checks import check_positions
from llm_lightning.modules.distillation.context import Context
from llm_lightning.modules.distillation.endpoint import Endpoint
from llm_lightning.modules.ranks import Ranks
from llm_lightning.objectives.distillation import DistillationLoss
from llm_lightning.rollouts import Sampling

AROUND = 40
"""Characters that are shown of two templates where they begin to differ."""


def check_objective(objective: DistillationLoss, z_loss: float, label_smoothing: float) -> None:
    """Raise `UserError` for settings outside of their range, or without an effect."""
    if objective.temperature <= 0:
        raise UserError(f"model.objective.temperature={objective.temperature} must be above 0.")
    if not 0 <= objective.labels_weight <= 1:
        raise UserError(f"model.objective.labels_weight={objective.labels_weight} must be at least 0 and at most 1.")
    if not 0 < objective.beta < 1:
        raise UserError(
            f"model.objective.beta={objective.beta} must lie between 0 and 1; at 0 and at 1 the divergence is nothing: "
            "take kind=forward_kl or reverse_kl."
        )
    if objective.beta != DistillationLoss.beta and objective.kind != "jensen_shannon":
        raise UserError(f"model.objective.beta has no effect on kind={objective.kind}, only on jensen_shannon.")
    if z_loss:
        raise UserError(f"model.z_loss={z_loss} is for training without a teacher, whose logits do not drift.")
    if label_smoothing:
        raise UserError(
            f"model.label_smoothing={label_smoothing} is for training without a teacher, whose distribution is smooth."
        )


def check_weights(weights: Sequence[float] | None, num_teachers: int) -> None:
    """Raise `UserError` where they are not those of the teachers."""
    if weights is None:
        return
    if len(weights) != num_teachers:
        raise UserError(
            f"model.weights={list(weights)}: there are {num_teachers} teachers, model.teacher and those of "
            "model.ensemble; give each a weight."
        )
    if min(weights) <= 0:
        raise UserError(f"model.weights={list(weights)}: a weight must be above 0; leave a teacher out instead.")


def check_itself(learns_from_itself: bool, context: Any, backbone: Backbone) -> None:
    """Raise `UserError` where there is no teacher: a student that knows as much has nothing to learn from itself."""
    if not learns_from_itself:
        return
    if context is None:
        raise UserError(
            "model.teacher.path: name the network to learn from (folder, hub id or .gguf), or give model.context, "
            "which the student then reads as its own teacher."
        )
    if backbone.path is None:
        raise UserError(
            "model.context without model.teacher learns from the student before training: give model.backbone.path, "
            "since a network from scratch knows nothing."
        )


def check_endpoint(
    endpoint: Endpoint, teachers: Sequence[Backbone], teacher_logprobs: str, objective: DistillationLoss
) -> None:
    """Raise `UserError` where an endpoint is no teacher by itself, or is asked for what it does not tell."""
    if teachers:
        raise UserError("model.endpoint: it is the teacher; leave out model.teacher and model.ensemble.")
    if teacher_logprobs != "cached":
        raise UserError(
            f"model.endpoint: it fills a cache, and model.teacher_logprobs={teacher_logprobs} has none; take "
            "--model.teacher_logprobs cached."
        )
    if objective.temperature != 1:
        raise UserError(
            f"model.objective.temperature={objective.temperature}: an endpoint tells log-probabilities at 1 alone; "
            "leave it out."
        )
    endpoint.check()


def check_turns(context: str | Sequence[Mapping[str, str]] | None) -> None:
    """Raise `UserError` for turns that a chat template would leave out or write as nothing."""
    for turn in () if context is None or isinstance(context, str) else context:
        if turn.keys() != {"role", "content"}:
            raise UserError(f"model.context: a turn has a role and a content, and {dict(turn)} has not.")


def check_context(context: Context, teachers: Sequence[Backbone], seq_len: int | None, room: int) -> None:
    """Raise `UserError` where a row behind the context, and `room` for what is written, is longer than what a teacher
    can tell apart.
    """
    for teacher in teachers:
        longest = _positions(teacher)
        if longest and seq_len and len(context.tokens) + seq_len + room > longest:
            raise UserError(
                f"model.context takes {len(context.tokens):,} tokens, with which a row of data.seq_len={seq_len:,} is "
                f"longer than the {longest:,} positions of {teacher.path}: shorten it, or lower data.seq_len"
                f"{' or model.sampling.max_new_tokens' if room else ''}."
            )


def check_on_policy(
    share: float, sampling: Sampling, teacher_logprobs: str, networks: Sequence[Backbone], datamodule: Any
) -> None:
    """Raise `UserError` where the student cannot write, or nobody can judge it.

    Args:
        share: `model.on_policy_share`.
        sampling: how it would write.
        teacher_logprobs: `live` or `cached`.
        networks: student and teachers.
        datamodule: None for none.
    """
    if not 0 <= share <= 1:
        raise UserError(f"model.on_policy_share={share} must be at least 0 and at most 1.")
    if not share:
        if sampling != Sampling():
            raise UserError("model.sampling has no effect while model.on_policy_share is 0.")
        return
    sampling.check("model.sampling")
    if teacher_logprobs == "cached":
        raise UserError(
            f"model.on_policy_share={share}: a cached teacher does not know what the student is going to write; take "
            "--model.teacher_logprobs live."
        )
    if datamodule is None:
        return
    if getattr(datamodule, "batch_kind", None) != "conversations" or not hasattr(datamodule, "in_order"):
        raise UserError(
            f"model.on_policy_share={share}: the student writes the last reply of a conversation, and "
            f"{type(datamodule).__name__} gives none: take --data InstructionDataModule."
        )
    for network in networks:
        longest = _positions(network)
        if longest and datamodule.seq_len + sampling.max_new_tokens > longest:
            raise UserError(
                f"model.sampling.max_new_tokens={sampling.max_new_tokens} behind a row of "
                f"data.seq_len={datamodule.seq_len} is longer than the {longest:,} positions of {network.path}: lower "
                "one of them."
            )


def check_strategy(trainer: Trainer) -> None:
    """Raise `UserError` where ranks hold the student's weights in a way that it cannot write with."""
    strategy = type(trainer.strategy).__name__
    if strategy not in ("SingleDeviceStrategy", "DDPStrategy", "FSDP2Strategy"):
        raise UserError(
            "model.on_policy_share: the student writes on one device or with trainer.strategy ddp or fsdp2, not with "
            f"{strategy}."
        )
    if Ranks.of(trainer).count < trainer.world_size:
        raise UserError("model.on_policy_share: the student cannot write with trainer.strategy.tensor_parallel_size.")


def _positions(network: Backbone) -> int | None:
    longest: int | None = getattr(network.read_config().get_text_config(decoder=True), "max_position_embeddings", None)
    return longest


def check_teachers(teachers: Sequence[Backbone], seq_len: int | None) -> None:
    """Raise `UserError` for a teacher that cannot be read, or whose context is shorter than the data's rows."""
    for teacher in teachers:
        if teacher.path is None:
            raise UserError("model.teacher.path: name the network to learn from (folder, hub id or .gguf).")
        try:
            check_positions(teacher.read_config(), None, seq_len)
        except UserError as error:
            raise UserError(str(error).replace("model.backbone", "model.teacher")) from error


def check_cache(top_k: int, datamodule: Any) -> None:
    """Raise `UserError` for a cache without anything in it, or of data without rows to keep it for."""
    if top_k < 1:
        raise UserError(f"model.top_k={top_k} must be at least 1.")
    if datamodule is not None and not hasattr(datamodule, "in_order"):
        raise UserError("model.teacher_logprobs=cached keeps what belongs to the rows of this project's DataModules.")


def check_top_k(top_k: int, vocab_size: int) -> None:
    """Raise `UserError` where there are not so many tokens."""
    if top_k > vocab_size:
        raise UserError(f"model.top_k={top_k} is above the {vocab_size:,} tokens that there are.")


def check_tokens(teacher: Backbone, tokenizer: Any, writes_turns: bool) -> None:
    """Compare a teacher's tokens with those of the data.

    Args:
        teacher: whose folder has a tokenizer.
        tokenizer: of the student and the data; None where there is none.
        writes_turns: whether its chat template is used.

    Raises:
        UserError: ids mean other tokens to the teacher, or it knows conversations in another form.
    """
    if tokenizer is None:
        return
    own, vocabulary = _tokenizer(str(teacher.path)), tokenizer.get_vocab()
    theirs = own.get_vocab()
    every = vocabulary.keys() | theirs.keys()
    if different := sorted(token for token in every if vocabulary.get(token) != theirs.get(token)):
        token = different[0]
        raise UserError(
            f"model.teacher.path={teacher.path!r} has another vocabulary: {len(different):,} tokens differ, such as "
            f"{token!r} ({vocabulary.get(token, 'none')} in the data, {theirs.get(token, 'none')} to the teacher). "
            "Take a teacher with the student's tokenizer, or --tokenizer of the teacher."
        )
    if not writes_turns:
        return
    if not own.chat_template:
        raise UserError(
            f"model.teacher.path={teacher.path!r} has no chat template, so that it does not know conversations: take a "
            "teacher that is tuned on them."
        )
    ours, known = (each.apply_chat_template(TALK, tokenize=False) for each in (tokenizer, own))
    if ours != known:
        parted = (place for place, (a, b) in enumerate(zip(ours, known, strict=False)) if a != b)
        place = next(parted, min(len(ours), len(known)))
        first, second = (text[max(0, place - AROUND) : place + AROUND] for text in (ours, known))
        raise UserError(
            f"model.teacher.path={teacher.path!r} knows conversations by another chat template: the data's has "
            f"{first!r} where the teacher's has {second!r}. Set data.template to the teacher's, or take a teacher that "
            "was tuned with this one."
        )


def check_same_teachers(saved: Sequence[str | None], teachers: Sequence[Beginning]) -> None:
    """Raise `UserError` where a checkpoint's run learned from others."""
    for number, teacher in enumerate(teachers):
        if number >= len(saved) or saved[number] != teacher.identity:
            raise UserError(
                f"The checkpoint's run learned from another teacher than {teacher.path}: give its own (see its "
                "config.yaml), another trainer.default_root_dir, or start over with --resume false."
            )
    if len(saved) > len(teachers):
        raise UserError(
            f"The checkpoint's run learned from {len(saved)} teachers, and {len(teachers)} are given: give them all, "
            "or start over with --resume false."
        )


def _tokenizer(path: str) -> Any:
    try:
        return read_tokenizer(path)
    except (OSError, ValueError) as error:
        raise UserError(f"model.teacher.path={path!r} has no tokenizer that can be read: {error}") from error
