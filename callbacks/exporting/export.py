"""Exports of the finished network, by the command `export` in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from callbacks.artifacts.model_folder import ModelFolder
from callbacks.errors import CallbackError
from callbacks.phase import is_rehearsal
from callbacks.stopping.graceful_stop import was_stopped
from callbacks.trainer_parts import callbacks_of

COMMAND = (sys.executable, "-m", "llm_lightning", "export")
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


class Export(Callback):
    """Runs `llm-lightning export` on a model folder of the run, once fit is over.

    The export reads that folder and nothing of the run, so that it is what the command would write later, with the same
    proof. What is there already is kept; a run that was stopped exports when it has gone on to its end.

    Args:
        to: Targets, each with its format: `["merged", "gguf:q8_0"]`; see `llm-lightning export --help`.
        model: Which folder: `best`, or `last` where nothing was validated or it is named.
        output: Where the exports go; `exports/` in the run folder if not given.
        text: A file whose perplexity is measured, in the place of the text that comes with the package.
        max_kl: Limit of the KL divergence, in the place of the format's own.
        max_perplexity_increase: Limit of the perplexity's increase, likewise.

    Raises:
        CallbackError: Before training, if a target is not there or its environment was not made; after it, if an export
            was refused. The model folders are whole then.
    """

    def __init__(
        self,
        to: Sequence[str],
        model: Literal["best", "last"] = "best",
        output: str | Path | None = None,
        text: str | Path | None = None,
        max_kl: float | None = None,
        max_perplexity_increase: float | None = None,
    ) -> None:
        if isinstance(to, str) or not to:
            raise CallbackError(f"Export.to={to!r}: give a list of targets, such as [merged, gguf:q8_0].")
        self.to = list(to)
        self.model = model
        self.output = output
        self.options = {"text": text, "max_kl": max_kl, "max_perplexity_increase": max_perplexity_increase}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not callbacks_of(trainer, ModelFolder):
            raise CallbackError("Export needs the callback ModelFolder, which writes what it exports.")
        if trainer.is_global_zero:
            done = self._run("--check", *self.to, capture_output=True)
            if done.returncode:
                raise CallbackError(f"Export.to: {done.stderr.strip().removeprefix('llm-lightning: error: ')}")

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Behind `on_fit_end` of all callbacks, some of which write the folders there.
        if stage != "fit" or is_rehearsal(trainer) or not trainer.is_global_zero:
            return
        if was_stopped(trainer):
            pl_module.print("The run was stopped; its network is exported when it has gone on to its end.")
            return
        folders = callbacks_of(trainer, ModelFolder)[0]
        best = self.model == "best" and folders.best.is_dir()
        output = Path(self.output or Path(trainer.default_root_dir) / "exports")
        words = [f"--{name}={value}" for name, value in self.options.items() if value is not None]
        model = folders.best if best else folders.last
        done = self._run(str(model), "--output", str(output), *words, "--to", *self.to)
        if done.returncode:
            raise CallbackError(
                f"Export: not all of {', '.join(self.to)} could be exported, see above. The model in {model} is whole; "
                f"`llm-lightning export {model} --output {output} --to ...` tries again."
            )

    def _run(self, *words: str, capture_output: bool = False) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
        return subprocess.run([*COMMAND, *words], env=environment, capture_output=capture_output, text=True)
