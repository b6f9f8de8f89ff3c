"""Is the network less safe than before it was trained? Asked before the first step and after the last one."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from callbacks.artifacts.model_folder import ModelFolder
from callbacks.artifacts.random_state import generator_states, set_generator_states
from callbacks.contract import ComparesEvaluations, EvaluatesTasks, Judge, SendsAlerts, offered, required
from callbacks.errors import CallbackError
from callbacks.monitoring.evaluation import Asked
from callbacks.monitoring.throughput import beside_training
from callbacks.phase import is_rehearsal
from callbacks.safety.verdict import INTERIM_LEVEL, LEVEL, METRICS, Verdict
from callbacks.stopping.graceful_stop import was_stopped
from callbacks.stopping.stop_when import StopWhen
from callbacks.trainer_parts import callbacks_of, follows
from callbacks.training_loop import ends_run, is_accumulating
from llm_lightning_safety.files import make_folder, parse_json, read_text, write_text

NAME = "safety.json"
"""The verdict, in the run folder."""

MOST_BYTES = 2**24
"""Of an evaluation's results."""


class SafetyGate(Callback):
    """Asks XSTest and BIPIA before the first step and after the last one, and tests whether anything got worse.

    XSTest: prompts that only sound unsafe and should not be refused, and unsafe ones that should. BIPIA: instructions
    hidden in e-mails that should not be obeyed, with a defence prompt and without. The same items are asked twice, on
    the weights in memory, so that the tests are paired: McNemar's exact one, or a bootstrap of e-mails; p is Holm's
    over all the gate's metrics. A change for the worse counts below 0.05 at the end, and below 0.001 in the course of
    training, where several looks must not add up to an alarm.

    The verdict is printed, logged, sent as an alert where it is bad, and written to `safety.json`, which the run's
    report shows. All answers lie in `evaluation/safety-step=N/`. What was asked before training is kept there for good;
    a run that is killed at any moment is asked nothing twice. Training goes on as if nothing had been asked.

    Args:
        xstest: File with `prompt` and `label` (safe or unsafe), or the folder that holds it as `prompts`.
        bipia: Folder with `email_train` and `text_attack_train.json`.
        action: What a change for the worse leads to: `warn` says so; `stop` ends the run with exit code 1, after its
            checkpoint and its model folders are written, and training at the first such check.
        every_n_steps: Optimizer steps between checks in the course of training; none if not given.
        limit: Items of each task, drawn at random, always the same; a share of them below 1. All if not given.
        chat_template: Put the items as a conversation, as the network will be used.
        system_prompt: Stands before each item.
        max_new_tokens: Of an answer; 96 if not given. How a model refuses shows in its first words.
        judge: A model that judges the answers, such as `LocalEngine` or `OpenAIEngine`; rules on their words if not
            given.

    Attributes:
        stopped: The check that ended training (`step`, `reason`), or None.

    Raises:
        CallbackError: A setting cannot work, or the answers from before training are missing; before training.
    """

    def __init__(
        self,
        xstest: str | None = None,
        bipia: str | None = None,
        action: Literal["warn", "stop"] = "warn",
        every_n_steps: int | None = None,
        limit: float | None = None,
        chat_template: bool = True,
        system_prompt: str | None = None,
        max_new_tokens: int | None = None,
        judge: Judge | None = None,
    ) -> None:
        if xstest is None and bipia is None:
            raise CallbackError("SafetyGate: give xstest, bipia or both: the files with what is asked.")
        for name, value in (("every_n_steps", every_n_steps), ("max_new_tokens", max_new_tokens)):
            if value is not None and value < 1:
                raise CallbackError(f"SafetyGate.{name}: {value} is below 1.")
        paths = {"local_xstest": xstest, "local_bipia": bipia, "local_bipia_defence": bipia}
        data = {task: path for task, path in paths.items() if path is not None}
        self.asked = Asked(
            list(data), data, limit=limit, draw=True, chat_template=chat_template, system_prompt=system_prompt,
            max_new_tokens=max_new_tokens,
        )  # fmt: skip
        self.action = action
        self.every_n_steps = every_n_steps
        self.judge = judge
        self.stopped: dict[str, Any] | None = None
        self._checks: list[dict[str, Any]] = []
        self._tasks: Any = None
        self._is_done = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        required(pl_module, ComparesEvaluations, self)
        if follows(trainer, self, ModelFolder):
            raise CallbackError(
                "SafetyGate: a run counts as finished once ModelFolder has written model/last; name SafetyGate before "
                "it in trainer.callbacks."
            )
        for each in callbacks_of(trainer, StopWhen):
            if each.restore_best and follows(trainer, each, SafetyGate):
                raise CallbackError(
                    "SafetyGate: StopWhen.restore_best would put other weights in the place of those that were asked; "
                    "name StopWhen before SafetyGate in trainer.callbacks."
                )
        if self.judge is not None:
            self.judge.check()
        self._tasks = required(pl_module, EvaluatesTasks, self).load_tasks(asdict(self.asked))
        self._is_done = False

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"stopped": self.stopped, "checks": self._checks}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stopped, self._checks = self.still_stopped(state_dict), state_dict["checks"]

    def still_stopped(self, state_dict: Mapping[str, Any]) -> dict[str, Any] | None:
        """The check that ended the run of a checkpoint, None where none did or it only warns by now.

        Args:
            state_dict: This callback's, of the checkpoint.
        """
        return state_dict["stopped"] if self.action == "stop" else None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_rehearsal(trainer):
            return
        trainer.should_stop = trainer.should_stop or self.stopped is not None
        if trainer.global_step == 0:
            self._evaluate(trainer, pl_module)
        else:
            self._check_before(trainer)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.every_n_steps is None or is_accumulating(trainer) or is_rehearsal(trainer):
            return
        if trainer.global_step % self.every_n_steps or ends_run(trainer):
            return
        with beside_training(trainer):
            verdict = self._compare(trainer, pl_module, INTERIM_LEVEL)
        self._checks.append({"step": verdict.step, "worse": verdict.worse})
        if verdict.worse and self.action == "stop":
            self.stopped = {"step": verdict.step, "reason": verdict.sentence}
            trainer.should_stop = True
            pl_module.print(f"Stopping at step {verdict.step}.")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that was killed behind its last step has no `on_train_end`, and Lightning has left the device.
        if not self._is_done and not was_stopped(trainer) and not is_rehearsal(trainer):
            pl_module.to(trainer.strategy.root_device)
            self._check_before(trainer)
            self._finish(trainer, pl_module)

    def failure(self, trainer: Trainer) -> str | None:
        """Why this run must not pass for a good one, by the verdict in its folder; None where it may."""
        path = _root(trainer) / NAME
        if self.action != "stop" or not path.is_file():
            return None
        verdict = parse_json(read_text(path))
        return str(verdict["verdict"]) if verdict["worse"] else None

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if was_stopped(trainer) or is_rehearsal(trainer):
            return
        self._is_done = True
        verdict = self._compare(trainer, pl_module, LEVEL)
        if trainer.is_global_zero:
            found = verdict.as_json() | {"action": self.action, "checks": self._checks}
            write_text(_root(trainer) / NAME, json.dumps(found, indent=1) + "\n")

    def _compare(self, trainer: Trainer, pl_module: LightningModule, level: float) -> Verdict:
        """Ask, test, and tell."""
        after = self._evaluate(trainer, pl_module)
        found: dict[str, Any] = {}
        if trainer.is_global_zero:
            module = required(pl_module, ComparesEvaluations, self)
            found = module.compare_evaluations(_folder(trainer, 0), after, list(METRICS))
        found = trainer.strategy.broadcast(found)
        verdict = Verdict(trainer.global_step, level, found.pop("changes"), found)
        pl_module.print(f"\nSafety gate, step {verdict.step}: {verdict.sentence}.\n{verdict.text()}")
        self._log(trainer, verdict)
        return verdict

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> Path:
        """Ask the network as it is."""
        folder, device = _folder(trainer, trainer.global_step), trainer.strategy.root_device
        if trainer.is_global_zero:
            make_folder(folder.parent)
        pl_module.print(f"\nSafety gate: asking {', '.join(self.asked.tasks)} at step {trainer.global_step} ...")
        generators = generator_states(device)
        with trainer.precision_plugin.forward_context():
            scores = required(pl_module, EvaluatesTasks, self).evaluate_tasks(
                self._tasks, asdict(self.asked), folder, self.judge, keep_answers=True
            )
        set_generator_states(generators, device)
        if trainer.is_global_zero:
            metrics = {f"safety/{task}/{name}": scores[f"{task}/{name}"] for task, name in _known(scores)}
            for logger in trainer.loggers:
                # Lightning counts the step that was just done from 0.
                logger.log_metrics(metrics, step=max(trainer.global_step - 1, 0))
        return folder

    def _check_before(self, trainer: Trainer) -> None:
        """Whether there is something to compare with, on all ranks."""
        results = _folder(trainer, 0) / "results.json"
        settings = parse_json(read_text(results, MOST_BYTES))["settings"] if results.is_file() else None
        settings = trainer.strategy.broadcast(settings)
        if settings is None:
            raise CallbackError(
                f"SafetyGate: {results} is missing, and the network has {trainer.global_step} steps behind it, so that "
                "nobody can say how it answered before: start over with --resume false, or leave SafetyGate out of "
                "trainer.callbacks."
            )
        for name in ("limit", "chat_template", "system_prompt", "max_new_tokens"):
            former, now = settings.get(name), getattr(self.asked, name)
            if former != now:
                raise CallbackError(
                    f"SafetyGate.{name}: {now!r} is given, and before training the network was asked with {former!r}: "
                    "give that, or start over with --resume false."
                )

    def _log(self, trainer: Trainer, verdict: Verdict) -> None:
        if not trainer.is_global_zero:
            return
        p = {f"safety/{c['task']}/{c['metric']}/p": c["corrected_p"] for c in verdict.changes}
        for logger in trainer.loggers:
            logger.log_metrics({k: v for k, v in p.items() if v is not None}, step=trainer.global_step - 1)
            logger.log_hyperparams({"safety": f"step {verdict.step}: {verdict.sentence}"})
            alerting = offered(logger, SendsAlerts)
            if alerting is not None and verdict.worse:
                alerting.alert("Less safe", f"step {verdict.step}: {verdict.sentence}")


def _known(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(task, name) for task, name in METRICS if f"{task}/{name}" in scores]


def _root(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir)


def _folder(trainer: Trainer, step: int) -> Path:
    return _root(trainer) / "evaluation" / f"safety-step={step}"
