"""What a policy writes while it learns from rewards."""

import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from callbacks.artifacts.json_lines import json_line
from callbacks.contract import KeepsSamples, offered
from callbacks.errors import CallbackError
from callbacks.phase import is_rehearsal
from callbacks.trainer_parts import wandb_loggers
from llm_lightning_safety.files import atomic_file, make_folder


class RolloutTable(Callback):
    """Keeps completions with their rewards, into `samples/rollouts-000100.jsonl` and a table of a W&B logger.

    Those of the step that is over, which a module that `KeepsSamples` has; of others nothing is written.
    They cost nothing, as they were sampled for training anyway.

    Args:
        every_n_steps: Steps between two tables. Without: the first step, and whenever the run validates.
        num_samples: Completions of a table. 16 are read in a minute.

    Raises:
        CallbackError: A number is below 1.
    """

    def __init__(self, every_n_steps: int | None = None, num_samples: int = 16) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("num_samples", num_samples)):
            if value is not None and value < 1:
                raise CallbackError(f"RolloutTable.{name}: {value} is below 1.")
        self.every_n_steps = every_n_steps
        self.num_samples = num_samples

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        is_due = step == 1 if self.every_n_steps is None else step % self.every_n_steps == 0
        if is_due:
            self._write(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every_n_steps is None and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        keeping = offered(pl_module, KeepsSamples)
        rows = keeping.samples[: self.num_samples] if keeping is not None else []
        if not rows or is_rehearsal(trainer) or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "samples"
        try:
            make_folder(folder)
            lines = b"".join(json_line(row) for row in rows)
            with atomic_file(folder / f"rollouts-{trainer.global_step:06d}.jsonl") as temporary:
                temporary.write_bytes(lines)
        except OSError as error:
            warnings.warn(f"No rollouts written at step {trainer.global_step}: {error}", stacklevel=2)
        cells = [[str(trainer.global_step), *(str(value) for value in row.values())] for row in rows]
        for logger in wandb_loggers(trainer):
            logger.log_text("rollouts", columns=["step", *rows[0]], data=cells)
