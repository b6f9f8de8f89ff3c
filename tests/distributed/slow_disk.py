"""A disk on which a sharded checkpoint takes its time."""

import os
import signal
import time
from pathlib import Path

from lightning.pytorch import Callback
from torch.distributed.checkpoint import FileSystemWriter


class SlowDisk(Callback):
    """Lets the last file of each checkpoint come late, and notes at each step which checkpoints are whole.

    With `kill_at` the process is ended by SIGKILL at the start of this step.
    """

    def __init__(self, seconds: float = 0.0, kill_at: int = -1) -> None:
        self.seconds, self.kill_at = seconds, kill_at

    def on_fit_start(self, trainer, pl_module):
        finish, seconds = FileSystemWriter.finish, self.seconds

        def late(writer, *args, **kwargs):
            time.sleep(seconds)
            finish(writer, *args, **kwargs)

        FileSystemWriter.finish = late

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        root = Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            whole = sorted(path.name for path in (root / "checkpoints").glob("step=*.ckpt"))
            with (root / "whole.txt").open("a") as file:
                file.write(f"{trainer.global_step} {' '.join(whole)}\n")
        if trainer.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
