"""A callback for the ranks of the tests: slow steps, a straggler, a crash, and what was seen at which time."""

import json
import os
import time
from pathlib import Path

from lightning.pytorch import Callback


class Pace(Callback):
    """Takes `seconds[rank]` for each step and notes it in `rank-R.jsonl`; ends the process before step `crash_at`.

    A batch of a validation takes `validation_seconds`.
    """

    def __init__(self, seconds: list[float], crash_at: int | None = None, validation_seconds: float = 0) -> None:
        self.seconds = seconds
        self.crash_at = crash_at
        self.validation_seconds = validation_seconds

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.crash_at:
            os._exit(1)

    def on_train_batch_end(self, trainer, *_):
        time.sleep(self.seconds[trainer.global_rank % len(self.seconds)])
        self.note(trainer, step=trainer.global_step)

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, *_):
        if self.validation_seconds and not trainer.sanity_checking:
            time.sleep(self.validation_seconds)
            self.note(trainer, step=trainer.global_step, validation_batch=batch_idx)

    def note(self, trainer, **what):
        line = what | {"time": time.time(), "attempt": os.environ.get("SLURM_RESTART_COUNT", "0")}
        with (Path(trainer.default_root_dir) / f"rank-{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
