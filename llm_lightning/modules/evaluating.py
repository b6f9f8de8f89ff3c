"""What a module in training asks of `llm_lightning.evaluation`: tasks, before it begins, their scores, and tests."""

import importlib.util
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.models.heads import base_model
from llm_lightning.models.loading.content import content_key
from llm_lightning.models.loading.sharding import is_zero3

NOT_SHOWN = {"tasks", "data", "columns", "include", "contamination"}
"""Of what is asked, that which does not belong to how items are put."""


def load_tasks(module: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Tasks with their data.

    Args:
        module: a `LanguageModule`, before it is trained.
        asked: the fields of `callbacks.monitoring.evaluation.Asked`.

    Raises:
        UserError: lm-evaluation-harness is missing, there is no such task, or it has a mistake; or the DataModule does
            not say what it trains on, where items are to be looked for in that.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("Evaluation needs lm-evaluation-harness: pip install 'llm-lightning[evaluation]'.")
    from llm_lightning.evaluation.evaluate import Prompting
    from llm_lightning.evaluation.tasks import loading

    Prompting(asked["limit"]).check()
    if asked["contamination"] and not hasattr(_datamodule(module), "training_texts"):
        raise UserError(
            f"Evaluation.asked.contamination: {type(_datamodule(module)).__name__} has no `training_texts`, in which "
            "items could be looked for: leave it out, or give it some as datamodules.contract.Data describes it."
        )
    include = [Path(folder) for folder in asked["include"]]
    return loading.load_tasks(asked["tasks"], include, asked["data"], asked["columns"], asked["num_fewshot"])


def evaluate(
    module: Any,
    tasks: Mapping[str, Any],
    asked: Mapping[str, Any],
    folder: Path,
    judge: Any = None,
    keep_answers: bool = False,
) -> dict[str, float]:
    """Scores of the weights as they are, by TASK/METRIC; results and answers are written to the folder.

    Args:
        module: a `LanguageModule`, in training.
        tasks: from `load_tasks`.
        asked: what it was given.
        folder: of this evaluation.
        judge: a `JudgeEngine`; None: the tasks' own rules judge.
        keep_answers: write each answer down as it comes, and ask nothing that these weights were asked before in this
            folder.

    Raises:
        UserError: a task does not fit the network or the judge, or this strategy cannot.
    """
    from llm_lightning.evaluation.evaluate import Prompting, evaluate, write_outcome
    from llm_lightning.evaluation.harness import Engine, HarnessSettings, NetworkLM
    from llm_lightning.measuring.answers import Answers

    trainer = module.trainer
    if module.ranks.count < trainer.world_size or is_zero3(next(base_model(module.model).parameters())):
        raise UserError(
            "Evaluation: a network whose layers are shared by ranks (tensor parallelism, DeepSpeed's ZeRO 3) cannot be "
            "asked in training: leave it out, and evaluate the model folder by `llm-lightning evaluate`."
        )
    settings = HarnessSettings(
        seed=asked["seed"], max_new_tokens=asked["max_new_tokens"], system_prompt=asked["system_prompt"]
    )
    engine = Engine(progress=False)
    weights = f"step {trainer.global_step}"
    if keep_answers:
        weights += f", {content_key(module.model.state_dict(keep_vars=True))}, {trainer.precision}"
    answers = Answers(folder if keep_answers else None, engine.ranks)
    lm = NetworkLM(module.model, module.tokenizer, weights, settings, engine, answers, tell=module.print)
    prompting = Prompting(asked["limit"], asked["chat_template"], asked["system_prompt"], draw=asked["draw"])
    trained_on = [_datamodule(module).training_texts()] if asked["contamination"] else []
    outcome = evaluate(lm, tasks, prompting, trained_on, judge)
    answers.close()
    if trainer.is_global_zero:
        shown = {name: asked[name] for name in asked if name not in NOT_SHOWN}
        write_outcome(
            folder,
            outcome,
            model={"path": str(trainer.default_root_dir), "fingerprint": weights},
            settings=shown | {"seq_len": lm.max_length, "cut_prompts": lm.num_cut},
            step=trainer.global_step,
            tokens=module.tokens_seen,
        )
    return _named(outcome.tasks)


def _datamodule(module: Any) -> Any:
    return getattr(module.trainer, "datamodule", None)


def compare(before: Path, after: Path, metrics: Collection[tuple[str, str]]) -> dict[str, Any]:
    """What changed from one evaluation to another, as `callbacks.contract.ComparesEvaluations` describes it."""
    from llm_lightning.evaluation.comparison import compare
    from llm_lightning.evaluation.results import read_evaluation

    one, two = read_evaluation(before), read_evaluation(after)
    found = compare([one], [two], metrics)
    order = list(metrics)
    changes = [
        {
            "task": each.task, "metric": each.metric, "before": each.first, "after": each.second,
            "difference": each.difference.value, "low": each.difference.low, "high": each.difference.high,
            "p": each.difference.p, "corrected_p": each.corrected_p, "smallest": each.difference.smallest,
            "test": each.test, "num_items": each.num_pairs,
            "num_left_out": each.num_unpaired + each.num_undefined,
            "higher_is_better": each.higher_is_better,
        }
        for each in sorted(found.scores, key=lambda score: order.index((score.task, score.metric)))
    ]  # fmt: skip
    return {
        "changes": [{name: _known(value) for name, value in each.items()} for each in changes],
        "judged_by": {name: task.get("judged_by") for name, task in two.tasks.items()},
        "judge_prompts": {name: task["judge_prompt"] for name, task in two.tasks.items() if task.get("judge_prompt")},
        "unreadable": {
            f"{name}/{score['metric']}": score["unparsed"]
            for name, task in two.tasks.items()
            for score in task["scores"]
            if task.get("judge_prompt") and score["unparsed"]
        },
        "asked_differently": sorted({each[0] for rows in found.differing_settings.values() for each in rows}),
    }


def _known(value: Any) -> Any:
    """None for what is no number, as JSON has none of these."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _named(tasks: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    named = {}
    for name, task in tasks.items():
        for score in task["scores"]:
            has_one = sum(each["metric"] == score["metric"] for each in task["scores"]) == 1
            key = f"{name}/{score['metric']}" if has_one else f"{name}/{score['metric']}/{score['reading']}"
            if math.isfinite(score["value"]):
                named[key] = score["value"]
    return named


def table(folder: Path) -> list[dict[str, Any]]:
    """The scores of an evaluation's folder, as `callbacks.contract.TabulatesEvaluations` describes it."""
    from llm_lightning.evaluation.results import read_evaluation

    return [
        {
            "task": name,
            "metric": score["metric"],
            "reading": score["reading"],
            "value": score["value"],
            "low": score["low"],
            "high": score["high"],
            "items": task["num_items"],
            "cut off": task["truncated"],
            "not read": score["unparsed"],
            "contaminated": task["contaminated"],
            "value without": score["clean"] and score["clean"]["value"],
        }
        for name, task in read_evaluation(folder).tasks.items()
        for score in task["scores"]
    ]
