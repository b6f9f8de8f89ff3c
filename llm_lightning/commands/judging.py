"""What `llm-lightning evaluate` does with a reward model: it judges pairs instead of answering tasks."""

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llm_lightning.errors import UserError

PAIRS = "local_pairs"

OF_TEXTS = ("include", "num_fewshot", "chat_template", "system_prompt", "max_new_tokens")
"""Flags that mean nothing where nothing is written."""


def check_asked(names: Sequence[str], model: str, is_reward_model: bool) -> None:
    """Raise `UserError` where a reward model is asked to write, or a language model to judge."""
    if is_reward_model and any(name != PAIRS for name in names):
        raise UserError(
            f"--tasks {', '.join(names)}: MODEL {model} is a reward model, which writes nothing. Ask it --tasks "
            f"{PAIRS} --data {PAIRS}=PATH."
        )
    if not is_reward_model and PAIRS in names:
        raise UserError(
            f"--tasks {PAIRS} asks reward models which of two responses is better, and MODEL {model} is a language "
            "model: leave it out, or give a folder that RewardModeling trained."
        )


def prepare_pairs(
    given: argparse.Namespace, model: Any, trained_on: Any
) -> Callable[[Any, Any], tuple[Any, dict[str, Any]]]:
    """Read the pairs; returns what asks the model.

    Args:
        given: the flags.
        model: a `LocalEngine` of a reward model.
        trained_on: texts in which the pairs are looked for.

    Raises:
        UserError: there are no pairs to judge, or a flag has no effect on a reward model.
    """
    from llm_lightning.evaluation.pairs import Judge, judged

    unused = next((name for name in OF_TEXTS if getattr(given, name)), None)
    if unused is not None:
        raise UserError(f"--{unused} is of models that write, and MODEL {given.model} is a reward model: leave it out.")
    others = next((name for name in given.data if name != PAIRS), None)
    if others is not None:
        raise UserError(f"--data {others}: this task is not among those that are asked ({PAIRS}).")
    pairs = _read(given.data.get(PAIRS), given.model, given.columns)

    def ask(engine: Any, answers: Any) -> tuple[Any, dict[str, Any]]:
        network = _network(model)
        judge = Judge(network, model.tokenizer, model.model, given.seq_len, engine, answers)
        outcome = judged(judge, pairs, given.limit, trained_on)
        settings = {
            "limit": given.limit,
            "seq_len": judge.max_length,
            "dtype": model.dtype,
            "cut_prompts": outcome.tasks[PAIRS]["truncated"],
        }
        return outcome, settings

    return ask


def _network(model: Any) -> Any:
    from llm_lightning.models.backbone import Backbone
    from llm_lightning.models.tasks import REWARD

    with model.device:
        backbone = Backbone(path=model.path, dtype=model.dtype)
        return backbone.build(model.tokenizer, REWARD).eval().requires_grad_(False)


def _read(path: str | None, model: str, columns: Mapping[str, Any]) -> list[Any]:
    """The pairs of whatever a `PreferenceDataModule` reads, tokenized as in training."""
    from datamodules import DataError, PreferenceDataModule

    if path is None:
        raise UserError(f"The task {PAIRS} reads pairs of yours: give them by --data {PAIRS}=PATH.")
    left_out: Counter[str] = Counter()
    data = PreferenceDataModule(path, tokenizer=model, columns=dict(columns) or None)
    try:
        pairs = list(data.judged_pairs(left_out))
    except DataError as error:
        raise UserError(f"--data {PAIRS}={path}: {error}") from error
    said = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
    if not pairs:
        raise UserError(f"--data {PAIRS}={path}: no pair is left to judge{f' ({said})' if said else ''}.")
    if said:
        print(f"Pairs that are left out: {said}")
    return pairs
