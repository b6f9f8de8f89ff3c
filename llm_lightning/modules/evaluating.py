"""What a module in training asks of `llm_lightning.evaluation`: the tasks, before it begins, and their scores."""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.models.heads import base_model
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


def evaluate(module: Any, tasks: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Scores of the weights as they are, by TASK/METRIC; results and answers are written to the folder.

    Args:
        module: a `LanguageModule`, in training.
        tasks: from `load_tasks`.
        asked: what it was given.
        folder: of this evaluation.

    Raises:
        UserError: a task does not fit the network, or this strategy cannot.
    """
    from llm_lightning.evaluation.evaluate import Prompting, evaluate, write_outcome
    from llm_lightning.evaluation.harness import Engine, HarnessSettings, NetworkLM

    trainer = module.trainer
    if module.ranks.count < trainer.world_size or is_zero3(next(base_model(module.model).parameters())):
        raise UserError(
            "Evaluation: a network whose layers are shared by ranks (tensor parallelism, DeepSpeed's ZeRO 3) cannot be "
            "asked in training: leave it out, and evaluate the model folder by `llm-lightning evaluate`."
        )
    settings = HarnessSettings(
        seed=asked["seed"], max_new_tokens=asked["max_new_tokens"], system_prompt=asked["system_prompt"]
    )
    weights = f"step {trainer.global_step}"
    lm = NetworkLM(module.model, module.tokenizer, weights, settings, Engine(progress=False), tell=module.print)
    prompting = Prompting(asked["limit"], asked["chat_template"], asked["system_prompt"])
    trained_on = [_datamodule(module).training_texts()] if asked["contamination"] else []
    outcome = evaluate(lm, tasks, prompting, trained_on)
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


def _named(tasks: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    named = {}
    for name, task in tasks.items():
        for score in task["scores"]:
            has_one = sum(each["metric"] == score["metric"] for each in task["scores"]) == 1
            key = f"{name}/{score['metric']}" if has_one else f"{name}/{score['metric']}/{score['reading']}"
            if math.isfinite(score["value"]):
                named[key] = score["value"]
    return named
