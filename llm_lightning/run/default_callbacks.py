"""The callbacks that every run has."""

from typing import Any

from lightning.pytorch.callbacks import Callback

import callbacks
from llm_lightning.run.report import RunReport


def default_callbacks(command: str, next_command: str, monitor: tuple[str, Any]) -> list[Callback]:
    """What every fit has; one of the same class in `trainer.callbacks` takes its place."""
    return [
        callbacks.Heartbeat(),
        callbacks.RandomState(),
        callbacks.Throughput(),
        callbacks.TrainingProgress(),
        callbacks.Samples(),
        callbacks.RolloutTable(),
        callbacks.Predictions(),
        callbacks.WandbRunId(),
        callbacks.ModelFolder(*monitor),
        callbacks.Curves(),
        callbacks.Reliability(),
        callbacks.RunSummary(next_command),
        RunReport(command),
        callbacks.RunCheckpoint(),
        callbacks.GracefulStop(),
    ]
