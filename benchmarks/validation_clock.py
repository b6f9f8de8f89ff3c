"""What a run has cost when it validates, as a Lightning callback."""

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class ValidationClock(Callback):
    """Writes a line of JSON for each validation: the step, the processor time that training took until then, the loss.

    Args:
        result: the file, begun anew.
    """

    def __init__(self, result: str) -> None:
        self.result = Path(result)
        self.cpu_s = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.result.write_text("")
        self._began = time.process_time()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.cpu_s += time.process_time() - self._began

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        row: dict[str, Any] = {"step": trainer.global_step, "cpu_s": self.cpu_s}
        row["loss"] = float(trainer.callback_metrics["val/loss"])
        with self.result.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._began = time.process_time()
