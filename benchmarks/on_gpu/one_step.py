"""A profile of one step of a fit, as a callback."""

import gzip
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

DEAREST = 10
"""Kernels, or operators of a CPU, in the table."""


class OneStep(Callback):
    """Profiles a step of a fit, from the end of the step before to its own: the wait for data is in it.

    Args:
        trace: .json.gz file, for chrome://tracing.
        table: .json file of what cost most: (name, milliseconds, calls).
        step: which one, counted from 1.
    """

    def __init__(self, trace: str, table: str, step: int) -> None:
        self.trace, self.table, self.step = Path(trace), Path(table), step
        self.done = 0
        self._profile: Any = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.done += 1
        on_gpu = trainer.strategy.root_device.type == "cuda"
        if self.done == self.step - 1:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
            self._profile = profile(activities=activities)
            self._profile.__enter__()
        elif self.done == self.step:
            if on_gpu:
                torch.cuda.synchronize()
            self._profile.__exit__(None, None, None)
            self._write(on_gpu)

    def _write(self, on_gpu: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "trace.json"
            self._profile.export_chrome_trace(str(plain))
            with plain.open("rb") as source, gzip.open(self.trace, "wb") as target:
                shutil.copyfileobj(source, target)
        cost = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        events = sorted(self._profile.key_averages(), key=lambda event: -getattr(event, cost))[:DEAREST]
        rows = [(event.key[:80], getattr(event, cost) / 1e3, event.count) for event in events]
        self.table.write_text(json.dumps(rows))
