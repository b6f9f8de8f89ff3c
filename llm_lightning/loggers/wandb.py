"""A Weights & Biases run that survives resuming, a missing network and an outage."""

import os
import secrets
import string
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import DummyExperiment, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from llm_lightning.loggers.lineage import (
    data_artifact,
    input_model_artifact,
    output_model_artifact,
    report_artifact,
)
from llm_lightning.loggers.redact import redact, redact_arguments
from llm_lightning_safety.files import is_plain_name, make_folder, read_text, write_text

OFFLINE_TIMEOUT_S = 90.0
"""W&B's own default: offline its local service alone has to answer, which a busy machine may start slowly."""

BY_STEP = ("rollout", "pruning")
"""Groups of metrics whose x-axis is the step; all others' is the tokens."""


class WandbRun(WandbLogger):
    """Logs to W&B with tokens as the x-axis, and the config without its secrets.

    The run's id lies in `wandb/run-id` of the run folder (and, by the callback `WandbRunId`, in the checkpoint), so
    that a resumed run is the same run. Without an API key it works offline, unless `WANDB_MODE` says otherwise. Nothing
    that goes wrong with W&B stops training: if the server does not answer, the run is kept on disk instead
    (`wandb sync` sends it later); if that fails too, training goes on without.

    The run begins with the first metric, when the checkpoint has been read and the id is known.

    Args:
        project: Name of the project.
        name: Name of the run; W&B invents one if not given.
        save_dir: Folder whose `wandb/` takes the run's files. The trainer's run folder if not given.
        id: Id of the run to log to, instead of the run folder's.
        entity: User or team that owns the project.
        group: Group of runs this one belongs to.
        job_type: Kind of run within a group.
        tags: Tags of the run.
        notes: A longer description.
        log_model: Upload the model folder when fit ends. Without, W&B gets a description of it: which files, where,
            and from which data and model it was made.
        init_timeout_s: Seconds to wait for the server at the start. W&B's own 90 are a long time to look at nothing.
        finish_timeout_s: Seconds to wait for the upload at the end; what is left stays on disk for `wandb sync`.
    """

    def __init__(
        self,
        project: str = "llm-lightning",
        name: str | None = None,
        save_dir: str | Path | None = None,
        id: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] | None = None,
        notes: str | None = None,
        log_model: bool = False,
        init_timeout_s: float = 20.0,
        finish_timeout_s: float = 60.0,
    ) -> None:
        super().__init__(
            project=project,
            name=name,
            save_dir=cast(str, save_dir),  # None until the trainer's run folder is known
            id=id,
            entity=entity,
            group=group,
            job_type=job_type,
            tags=tags,
            notes=notes,
        )
        del self._wandb_init["anonymous"]  # Lightning passes it always, and wandb warns of it
        self.uploads_model = log_model  # Lightning's own setting of that name uploads checkpoints
        self.init_timeout_s = init_timeout_s
        self.finish_timeout_s = finish_timeout_s
        self._config: dict[str, Any] = {}
        self._trainer: Trainer | None = None
        self._early: list[tuple[Mapping[str, Any], int | None]] = []
        self._ready = False
        self._failed = False
        self._newest: tuple[int | None, dict[str, Any]] = (None, {})

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `wandb.Run`; a dummy before the trainer is set up and after a failure."""
        if self._experiment is None and self._ready and not self._failed:
            self._experiment = self._open()
        return self._experiment or DummyExperiment()

    @override
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        # Of a logger's hooks, this alone sees the trainer before the first metric.
        self._trainer = model.trainer
        if self._save_dir is None:
            self._save_dir = model.trainer.default_root_dir
        self._ready = True

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Adds settings to the run's config, without their secrets."""
        params = redact(vars(params) if isinstance(params, Namespace) else dict(params))
        self._config |= params
        if self._experiment is not None:
            self._guarded(super().log_hyperparams, params)

    @rank_zero_only
    @override
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if self._save_dir is None:  # what DataModules say of themselves may come before the trainer is known
            self._early.append((metrics, step))
            return
        self._ready = True
        while self._early:
            self.log_metrics(*self._early.pop(0))
        newest = (step, dict(metrics))
        if not self._failed and newest != self._newest:  # a checkpoint's step is logged before it and after it
            self._newest = newest
            self._guarded(super().log_metrics, metrics, step)

    @rank_zero_only
    def alert(self, title: str, text: str) -> None:
        """Tells the run's owner (by mail or Slack, as W&B is set up) what goes wrong; of one title once in ten minutes.

        Args:
            title: below 64 characters.
            text: what happened.
        """
        if self._ready and not self._failed:
            self._guarded(lambda: self.experiment.alert(title, redact(text), level="WARN", wait_duration=600))

    @rank_zero_only
    @override
    def finalize(self, status: str) -> None:
        """Adds the model to the lineage; of a run that failed, tells why."""
        error = sys.exc_info()[1]
        if status != "success":
            if isinstance(error, Exception):
                self.alert("Run failed", f"{type(error).__name__}: {error}")
        elif self._experiment is not None and self._fits():
            self._guarded(self._log_output)

    def _fits(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == "fit"

    def _log_inputs(self, run: Any) -> None:
        """Declare what the run is made from."""
        assert self._trainer is not None
        path = getattr(getattr(self._trainer.lightning_module, "backbone", None), "path", None)
        inputs = [data_artifact(getattr(self._trainer, "datamodule", None))]
        inputs += [input_model_artifact(path, self.uploads_model)] if path else []
        for artifact in inputs:
            if artifact is not None:
                # `use_artifact` refuses to work offline and waits for the server online. This is what it calls, without
                # the wait; offline, `wandb sync` declares the use.
                run._log_artifact(artifact, is_user_created=True, use_after_commit=True)

    def _log_output(self) -> None:
        assert self._trainer is not None
        artifact = output_model_artifact(self._trainer, self.experiment.id, self.uploads_model)
        if artifact is not None:
            self.experiment.log_artifact(artifact, aliases=["latest", f"step-{self._trainer.global_step}"])
        page = report_artifact(Path(self._trainer.default_root_dir) / "report.html", self.experiment.id)
        if page is not None:
            self.experiment.log_artifact(page)

    def _guarded(self, log: Any, *args: Any) -> None:
        # What wandb and its service raise has no base in common, and no tracking server is worth a run.
        try:
            log(*args)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._failed, self._experiment = True, None
        warnings.warn(f"W&B failed, training goes on without it: {error}", stacklevel=2)

    def _open(self) -> Any:
        folder = Path(self._save_dir or ".").resolve()  # W&B's service may be another command's, in another folder
        run: Any = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Where artifacts wait for their upload, which may be long after; the home folder by default.
            os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
            init = {**redact(self._wandb_init), "dir": str(folder), "id": self._run_id(folder), "config": self._config}
            with _redacted_command_line():
                run = self._init(init)
            run.define_metric("tokens")
            run.define_metric("*", step_metric="tokens", step_sync=True)
            # Masks change with the optimizer's steps, and rollouts are counted as steps.
            for group in BY_STEP:
                run.define_metric(f"{group}/*", step_metric="trainer/global_step", step_sync=True)
            if self._fits():
                self._log_inputs(run)
        except Exception as error:
            self._give_up(error)
        return run

    def _init(self, init: dict[str, Any]) -> Any:
        import wandb

        offline = init | {"settings": self._settings(max(self.init_timeout_s, OFFLINE_TIMEOUT_S))}
        init = init | {"settings": self._settings(self.init_timeout_s)}
        if "WANDB_MODE" in os.environ:
            return wandb.init(**(offline if os.environ["WANDB_MODE"] == "offline" else init))
        if not wandb.login(prompt=False, verify=False):
            warnings.warn("No W&B API key: logging offline. Run `wandb login` to log online.", stacklevel=2)
            return wandb.init(**offline, mode="offline")
        try:
            return wandb.init(**init)
        except Exception as error:
            warnings.warn(f"W&B does not answer ({error}): logging offline; `wandb sync` sends it later.", stacklevel=2)
            wandb.teardown()  # its service would not give the run's id a second time
            return wandb.init(**offline, mode="offline")

    def _settings(self, init_timeout_s: float) -> Any:
        import wandb

        return wandb.Settings(init_timeout=init_timeout_s, finish_timeout=self.finish_timeout_s)

    def _run_id(self, folder: Path) -> str:
        """The given id, else a sweep's, else that of the run folder, else a new one; noted in the run folder."""
        note = folder / "wandb" / "run-id"
        run_id = self._id or os.environ.get("WANDB_RUN_ID") or _noted_id(note) or _new_id()
        make_folder(note.parent)
        write_text(note, run_id)
        self._id = run_id
        return run_id


def _noted_id(note: Path) -> str | None:
    """What the run folder says, if that is an id: it is sent to W&B, and the folder may be a stranger's."""
    if not os.path.lexists(note):
        return None
    try:
        noted = read_text(note).strip()
    except OSError as error:
        warnings.warn(f"W&B: a new run is begun, the id of the earlier one was not read: {error}", stacklevel=2)
        return None
    if not is_plain_name(noted):
        warnings.warn(f"W&B: a new run is begun, {note} holds no run's id.", stacklevel=2)
        return None
    return noted


def _new_id() -> str:
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


@contextmanager
def _redacted_command_line() -> Iterator[None]:
    """W&B notes the command line in the run's metadata."""
    argv, sys.argv = sys.argv, redact_arguments(sys.argv)
    try:
        yield
    finally:
        sys.argv = argv
