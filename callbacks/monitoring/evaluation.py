"""Benchmarks while a model learns: the same tasks again and again, on the weights as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from callbacks.artifacts.random_state import generator_states, set_generator_states
from callbacks.contract import CountsTokens, EvaluatesTasks, TabulatesEvaluations, offered, required
from callbacks.errors import CallbackError
from callbacks.monitoring.throughput import beside_training
from callbacks.phase import is_rehearsal
from callbacks.trainer_parts import wandb_loggers
from callbacks.training_loop import ends_run, is_accumulating
from llm_lightning_safety.files import make_folder


@dataclass
class Asked:
    """Which tasks, and how they are put; see `llm-lightning evaluate --help` and docs/running/evaluation.md.

    Args:
        tasks: names or YAML files.
        data: by ready task, the file or folder that it reads.
        columns: by column that a ready task reads, what your file calls it.
        include: folders with YAML files of your own tasks.
        num_fewshot: examples before each item.
        limit: items of a task, the first ones; a share of them below 1.
        draw: take as many items at random in the place of the first ones, always the same: files are often sorted.
        chat_template: as a conversation.
        system_prompt: stands before each item.
        max_new_tokens: of an answer, in the place of what the tasks say.
        seed: of answers that are sampled.
        contamination: look for the items in the training data, once, at some 15 MB a second and rank.
    """

    tasks: Sequence[str]
    data: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    include: Sequence[str] = ()
    num_fewshot: int | None = None
    limit: float | None = None
    chat_template: bool = False
    system_prompt: str | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    contamination: bool = False
    draw: bool = False


class Evaluation(Callback):
    """Asks the tasks' items every so many steps or tokens, and at the run's end; no second copy of the weights is made.

    Scores are logged as `eval/TASK/METRIC`, where there are several readings as `eval/TASK/METRIC/READING`; a W&B
    logger gets a table too, with intervals and what was cut off, not read or contaminated. Results and all answers lie
    in `evaluation/step=N/` of the run folder, where a report finds them. Training goes on as if nothing had been asked.

    Args:
        asked: which tasks, and how.
        every_n_steps: Optimizer steps between two evaluations. A few hundred items take a small model on two cores
            about a minute: choose it so that this is a small part of the run.
        every_n_tokens: Trained tokens between two, in its place.

    Raises:
        CallbackError: Not exactly one of `every_n_steps` and `every_n_tokens` is given, or it is below 1; before
            training, if the module cannot evaluate.
    """

    def __init__(self, asked: Asked, every_n_steps: int | None = None, every_n_tokens: int | None = None) -> None:
        given = {"every_n_steps": every_n_steps, "every_n_tokens": every_n_tokens}
        set_ones = {name: value for name, value in given.items() if value is not None}
        if len(set_ones) != 1:
            raise CallbackError("Evaluation: give one of every_n_steps and every_n_tokens.")
        for name, value in set_ones.items():
            if value < 1:
                raise CallbackError(f"Evaluation.{name}: {value} is below 1.")
        self.asked = asked
        self.every_n_steps, self.every_n_tokens = every_n_steps, every_n_tokens
        self._tasks: Any = None
        self._tokens = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._tasks = required(pl_module, EvaluatesTasks, self).load_tasks(asdict(self.asked))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self._tokens}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._tokens = state_dict["tokens"]

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if is_accumulating(trainer) or is_rehearsal(trainer):
            return
        if self._is_due(trainer, pl_module) or ends_run(trainer):
            with beside_training(trainer):
                self._evaluate(trainer, pl_module)

    def _is_due(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        if self.every_n_steps is not None:
            return trainer.global_step % self.every_n_steps == 0
        assert self.every_n_tokens is not None
        former, self._tokens = self._tokens, required(pl_module, CountsTokens, self).tokens_seen
        return self._tokens // self.every_n_tokens > former // self.every_n_tokens

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, device = trainer.global_step, trainer.strategy.root_device
        tokens = required(pl_module, CountsTokens, self).tokens_seen
        folder = Path(trainer.default_root_dir) / "evaluation" / f"step={step}"
        if trainer.is_global_zero:
            make_folder(folder.parent)
        generators = generator_states(device)
        with trainer.precision_plugin.forward_context():
            scores = required(pl_module, EvaluatesTasks, self).evaluate_tasks(self._tasks, asdict(self.asked), folder)
        set_generator_states(generators, device)
        if not trainer.is_global_zero:
            return
        metrics = {f"eval/{name}": value for name, value in scores.items()} | {"tokens": float(tokens)}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step - 1)  # Lightning counts the step that was just done from 0
        table = offered(pl_module, TabulatesEvaluations)
        loggers = wandb_loggers(trainer)
        if table is None or not loggers:
            return
        rows = table.evaluation_table(folder)
        cells = [[step, *row.values()] for row in rows]
        for wandb_logger in loggers:
            wandb_logger.log_table("evaluation", columns=["step", *rows[0]], data=cells, step=step - 1)
