"""Asks a network the items of tasks, and writes what came of it."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from lm_eval.evaluator import evaluate as ask_all
from pyarrow import parquet

from llm_lightning.errors import UserError
from llm_lightning.evaluation.contamination import TrainingTexts, look_for_docs
from llm_lightning.evaluation.harness import NetworkLM
from llm_lightning.evaluation.judging import JudgeEngine, judge_answers
from llm_lightning.evaluation.results import FORMAT, ITEMS, RESULTS
from llm_lightning.evaluation.scores import task_scores
from llm_lightning.evaluation.tasks.loading import MISTAKES, in_words
from llm_lightning_safety.files import atomic_file, make_folder, write_text

COLUMNS = pa.schema(
    [
        ("task", pa.string()),
        ("item", pa.int64()),
        ("item_hash", pa.string()),
        ("cluster", pa.string()),
        ("metric", pa.string()),
        ("reading", pa.string()),
        ("value", pa.float64()),
        ("answer", pa.string()),
        ("parsed", pa.string()),
        ("truncated", pa.bool_()),
        ("num_tokens", pa.int64()),
        ("contaminated", pa.bool_()),
    ]
)
"""Of `items.parquet`."""


@dataclass(frozen=True)
class Prompting:
    """How items are put to the network.

    Args:
        limit: items of a task, the first ones; below 1 a share of them. By default all.
        draw: take as many items at random in the place of the first ones, always the same: files are often sorted.
        chat_template: as a conversation, by the tokenizer's template; few-shot examples are turns of it.
        system_prompt: stands before each item, with a chat template as a turn of its own.
        fewshot_seed: by which tasks draw their few-shot examples.
    """

    limit: float | None = None
    chat_template: bool = False
    system_prompt: str | None = None
    fewshot_seed: int = 1234
    draw: bool = False

    def check(self) -> None:
        """Raise `UserError` for values that cannot work."""
        if self.limit is not None and not (0 < self.limit < 1 or (self.limit >= 1 and self.limit == int(self.limit))):
            raise UserError(f"limit={self.limit}: give a number of items, or a share of them between 0 and 1.")

    def drawn(self, num_items: int) -> list[int]:
        """The items of a task of so many, where they are drawn."""
        assert self.limit is not None
        count = math.ceil(self.limit * num_items) if self.limit < 1 else min(int(self.limit), num_items)
        return sorted(random.Random(0).sample(range(num_items), count))


@dataclass(frozen=True)
class Outcome:
    """What an evaluation came to.

    Args:
        tasks: by name, as `results.json` has them.
        rows: of `items.parquet`.
    """

    tasks: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]]


def evaluate(
    lm: NetworkLM,
    tasks: Mapping[str, Any],
    prompting: Prompting,
    trained_on: Sequence[TrainingTexts] = (),
    judge: JudgeEngine | None = None,
) -> Outcome:
    """Ask all items of all tasks; every rank calls it, and has the whole outcome.

    Args:
        lm: the network.
        tasks: from `load_tasks`.
        prompting: how they are asked.
        trained_on: in which items are looked for.
        judge: judges the answers in the place of the tasks' rules.

    Raises:
        UserError: a task does not fit its data, the network or the judge.
    """
    prompting.check()
    for task in tasks.values():
        task.set_fewshot_seed(seed=prompting.fewshot_seed)
    is_drawn = prompting.draw and prompting.limit is not None
    try:
        found = ask_all(
            lm,
            {"tasks": dict(tasks), "groups": {}, "group_map": {}},
            limit=None if is_drawn else prompting.limit,
            samples={name: prompting.drawn(len(task.eval_docs)) for name, task in tasks.items()} if is_drawn else None,
            bootstrap_iters=0,
            log_samples=True,
            system_instruction=prompting.system_prompt,
            apply_chat_template=prompting.chat_template,
            fewshot_as_multiturn=prompting.chat_template,
        )
    except UserError:
        raise
    except MISTAKES as error:
        raise UserError(f"One of the tasks {', '.join(tasks)} does not fit its data: {in_words(error)}") from error
    samples = {name: found["samples"][name] for name in tasks}
    contaminated = look_for_docs(samples, trained_on, lm.engine.ranks) if trained_on else {}
    results, rows = {}, []
    for name, task in tasks.items():
        judged = judge_answers(task, samples[name], lm, judge)
        results[name], own = task_scores(task, samples[name], lm.written, judged, contaminated.get(name))
        rows += own
    return Outcome(results, rows)


def write_outcome(
    folder: Path,
    outcome: Outcome,
    *,
    model: Mapping[str, str],
    settings: Mapping[str, Any],
    command: list[str] | None = None,
    step: int | None = None,
    tokens: int | None = None,
) -> None:
    """Write `results.json` and `items.parquet` into a folder, each at once.

    Args:
        folder: it is made where it is missing.
        outcome: what is written.
        model: its `path` and `fingerprint`.
        settings: with which the tasks were asked.
        command: that asked, without secrets; None for a callback.
        step, tokens: of training, where there is one.
    """
    make_folder(folder)
    with atomic_file(folder / ITEMS) as temporary:
        parquet.write_table(pa.Table.from_pylist([_encodable(row) for row in outcome.rows], COLUMNS), temporary)
    results = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "model": dict(model),
        "step": step,
        "tokens": tokens,
        "settings": dict(settings),
        "tasks": outcome.tasks,
    }
    write_text(folder / RESULTS, json.dumps(_finite(results), indent=1, default=str) + "\n")


def _encodable(row: dict[str, Any]) -> dict[str, Any]:
    """Lone surrogates, which JSON data can carry, as escapes."""
    return {k: v.encode("utf-8", "backslashreplace").decode() if isinstance(v, str) else v for k, v in row.items()}


def _finite(value: Any) -> Any:
    """JSON has no infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return value
