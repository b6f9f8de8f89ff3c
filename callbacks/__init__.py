"""What happens around training; each callback plugs into any LightningModule that holds its network as `self.model`."""

from callbacks.curves import Curves
from callbacks.early_stopping import EarlyStopping
from callbacks.errors import CallbackError
from callbacks.graceful_stop import GracefulStop
from callbacks.heartbeat import Heartbeat
from callbacks.model_folder import ModelFolder
from callbacks.predictions import Predictions
from callbacks.progress import TrainingProgress
from callbacks.pruning import Pruning
from callbacks.quantization import Quantization
from callbacks.random_state import RandomState
from callbacks.reliability import Reliability
from callbacks.rollout_table import RolloutTable
from callbacks.run_checkpoint import RunCheckpoint
from callbacks.samples import Samples
from callbacks.stop_conditions import Budget, Divergence, NoImprovement, NotFinite, StopCondition, Target
from callbacks.summary import RunSummary
from callbacks.throughput import Throughput
from callbacks.wandb_run_id import WandbRunId

__all__ = [
    "Budget",
    "CallbackError",
    "Curves",
    "Divergence",
    "EarlyStopping",
    "GracefulStop",
    "Heartbeat",
    "ModelFolder",
    "NoImprovement",
    "NotFinite",
    "Predictions",
    "Pruning",
    "Quantization",
    "RandomState",
    "Reliability",
    "RolloutTable",
    "RunCheckpoint",
    "RunSummary",
    "Samples",
    "StopCondition",
    "Target",
    "Throughput",
    "TrainingProgress",
    "WandbRunId",
]
