"""What happens around training; each callback plugs into any LightningModule that holds its network as `self.model`."""

from callbacks.curves import Curves
from callbacks.errors import CallbackError
from callbacks.graceful_stop import GracefulStop
from callbacks.model_folder import ModelFolder
from callbacks.predictions import Predictions
from callbacks.progress import TrainingProgress
from callbacks.random_state import RandomState
from callbacks.rollout_table import RolloutTable
from callbacks.run_checkpoint import RunCheckpoint
from callbacks.samples import Samples
from callbacks.summary import RunSummary
from callbacks.throughput import Throughput
from callbacks.wandb_run_id import WandbRunId

__all__ = [
    "CallbackError",
    "Curves",
    "GracefulStop",
    "ModelFolder",
    "Predictions",
    "RandomState",
    "RolloutTable",
    "RunCheckpoint",
    "RunSummary",
    "Samples",
    "Throughput",
    "TrainingProgress",
    "WandbRunId",
]
