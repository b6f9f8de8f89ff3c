"""What happens around training; each callback plugs into any LightningModule that holds its network as `self.model`."""

from callbacks.artifacts.model_folder import ModelFolder
from callbacks.artifacts.predictions import Predictions
from callbacks.artifacts.random_state import RandomState
from callbacks.artifacts.run_checkpoint import RunCheckpoint
from callbacks.artifacts.wandb_run_id import WandbRunId
from callbacks.averaging import EMA, SWA
from callbacks.batch_size import BatchSizeWarmup
from callbacks.continual import EWC, L2SP
from callbacks.errors import CallbackError
from callbacks.exporting import Export
from callbacks.mixing import LossWeightedMixture
from callbacks.monitoring.curves import Curves
from callbacks.monitoring.energy import Energy
from callbacks.monitoring.evaluation import Asked, Evaluation
from callbacks.monitoring.heartbeat import Heartbeat
from callbacks.monitoring.progress import TrainingProgress
from callbacks.monitoring.reliability import Reliability
from callbacks.monitoring.rollout_table import RolloutTable
from callbacks.monitoring.samples import Samples
from callbacks.monitoring.summary import RunSummary
from callbacks.monitoring.throughput import Throughput
from callbacks.pruning import Pruning
from callbacks.quantization import Quantization, QuantizationAwareTraining
from callbacks.regularization import LayerDrop, NEFTune, StochasticDepth
from callbacks.safety import SafetyGate
from callbacks.stopping.conditions import Budget, Divergence, NoImprovement, NotFinite, StopCondition, Target
from callbacks.stopping.graceful_stop import GracefulStop
from callbacks.stopping.stop_when import StopWhen

__all__ = [
    "EMA",
    "EWC",
    "L2SP",
    "SWA",
    "Asked",
    "BatchSizeWarmup",
    "Budget",
    "CallbackError",
    "Curves",
    "Divergence",
    "Energy",
    "Evaluation",
    "Export",
    "GracefulStop",
    "Heartbeat",
    "LayerDrop",
    "LossWeightedMixture",
    "ModelFolder",
    "NEFTune",
    "NoImprovement",
    "NotFinite",
    "Predictions",
    "Pruning",
    "Quantization",
    "QuantizationAwareTraining",
    "RandomState",
    "Reliability",
    "RolloutTable",
    "RunCheckpoint",
    "RunSummary",
    "SafetyGate",
    "Samples",
    "StochasticDepth",
    "StopCondition",
    "StopWhen",
    "Target",
    "Throughput",
    "TrainingProgress",
    "WandbRunId",
]
