"""Starts the workers of a run by Ray Train, and waits for their end."""

import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
from ray import train
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer

from llm_lightning.errors import UserError
from llm_lightning.launch.ray.options import WorkerOptions
from llm_lightning.launch.ray.worker import MISTAKEN, Work, work

OBJECT_STORE_BYTES = 100 * 2**20
"""Of a cluster on this machine: nothing of a run goes through Ray's object store, which would take 30 % of memory."""


class SharedDevices(Backend):
    """Each worker sees the GPUs of all workers of its node, of which its rank takes that of its local rank."""

    share_cuda_visible_devices = True


class RankDevices(TorchConfig):
    """Leaves process group and GPU to the rank: strategies have timeouts and backends of their own."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Nothing but the GPUs that are seen."""
        return SharedDevices

    @property
    def train_func_context(self) -> type[nullcontext[None]]:
        """Nothing: Ray's own would hold memory of the GPU in each worker."""
        return nullcontext


class MistakeError(RuntimeError):
    """What is raised in Ray's controller to end a run that a restart would not mend."""


class EndAtMistakes(train.UserCallback):
    """Keeps Ray from restarting ranks that ended for a mistake of the user."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Look at what the workers raised."""
        if any(MISTAKEN in str(error) for error in worker_exceptions.values()):
            raise MistakeError(MISTAKEN)


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or one that runs here; else start one on this machine.

    Raises:
        UserError: nobody answers at RAY_ADDRESS.
    """
    if ray.is_initialized():
        return
    quiet = {"log_to_driver": True, "configure_logging": True}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError as error:
        if address := os.environ.get("RAY_ADDRESS"):
            raise UserError(
                f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}). Unset it to run on this machine."
            ) from error
        ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)


def fit(options: WorkerOptions, given: Work) -> None:
    """Run the ranks to their end.

    Args:
        options: What the cluster is asked for.
        given: What each worker runs.

    Raises:
        UserError: the cluster can never hold the workers, or the ranks ended for a mistake of the user.
        train.TrainingFailedError: they failed more often than was allowed.
    """
    connect()
    try:
        options.check_cluster(ray.nodes())
        _trainer(options, given).fit()
    except train.ControllerError as error:
        if MISTAKEN in str(error):
            raise UserError(f"The ranks ended with {MISTAKEN}; their message is above.") from error
        raise
    finally:
        ray.shutdown()


def _trainer(options: WorkerOptions, given: Work) -> TorchTrainer:
    return TorchTrainer(
        work,
        train_loop_config=dict(given),
        torch_config=RankDevices(),
        scaling_config=train.ScalingConfig(**options.scaling()),
        run_config=train.RunConfig(
            # A name for each start: Ray would go on by what an older one left, while our checkpoints decide that.
            name=f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}",
            storage_path=str(Path(given["folder"], given["root"], "ray")),
            failure_config=train.FailureConfig(max_failures=options.max_restarts),
            checkpoint_config=train.CheckpointConfig(num_to_keep=1),
            callbacks=[EndAtMistakes()],
        ),
    )
