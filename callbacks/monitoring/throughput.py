"""Speed and memory of training: tokens/s, model FLOPs utilization, peak memory."""

import resource
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from callbacks.contract import HoldsNetwork, required
from callbacks.errors import CallbackError
from callbacks.monitoring.flops import TokenFlops, peak_flops, synchronize
from callbacks.network import dtype_of
from callbacks.trainer_parts import callbacks_of
from callbacks.training_loop import is_accumulating, logs_now


class _Mark(NamedTuple):
    step: int
    seconds: float
    tokens: float
    pairs: float


class Throughput(Callback):
    """Logs speed and memory wherever the trainer logs (every `log_every_n_steps`).

    - `throughput/tokens_per_s`: tokens of all ranks over the time of training. Waiting for data counts, validation,
      checkpoints and the `Evaluation` callback do not. Padding does not count where an `attention_mask` tells it.
    - `throughput/mfu`: share of the devices' peak FLOP/s that went into the network's own FLOPs (see `TokenFlops`;
      recomputation by activation checkpointing earns nothing). The peak comes from data sheets, or from a short
      measurement when training starts.
    - `throughput/memory_mb`: peak of allocated memory on the GPU, or of the process' resident memory without one.

    On a GPU the host waits for the device only where it logs.

    Args:
        window_size: Number of optimizer steps that a figure looks back over. 20 smooths single steps and still shows
            a change within a minute. Where the trainer logs less often, the time since it last logged.

    Raises:
        CallbackError: `window_size` is not positive; before training, if the module holds no network.
    """

    def __init__(self, window_size: int = 20) -> None:
        if window_size < 1:
            raise CallbackError(f"Throughput.window_size: {window_size} is not a number of steps; use 1 or more.")
        self.window_size = window_size
        self._marks: deque[_Mark] = deque()
        self._seconds = 0.0
        self._running_since: float | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        required(pl_module, HoldsNetwork, self)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._device = trainer.strategy.root_device
        network = required(pl_module, HoldsNetwork, self).model
        self._flops = TokenFlops.of(network)
        self._peak = peak_flops(self._device, _matmul_dtype(trainer, network)) * trainer.world_size
        self._distinct_share = _num_replicas(trainer) / trainer.world_size
        self._marks.clear()
        self._steps = 0
        self._tokens = torch.zeros((), dtype=torch.int64, device=self._device)
        self._pairs = torch.zeros_like(self._tokens)
        self._seconds, self._running_since = 0.0, None

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._running_since is None:
            self._running_since = time.perf_counter()

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, _: Any, batch: Any, __: int) -> None:
        self._count(batch)
        if is_accumulating(trainer):
            return
        self._steps += 1
        logs = logs_now(trainer)
        # The first step compiles and allocates; the count starts behind it.
        if logs or not self._marks:
            self._mark(trainer)
        if logs and len(self._marks) > 1:
            self._log(pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause()

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._pause()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside is no part of training."""
        was_running = self._running_since is not None
        self._pause()
        yield
        self._running_since = time.perf_counter() if was_running else None

    def _count(self, batch: Mapping[str, Any]) -> None:
        """Adds a batch's tokens and its pairs of positions that attend, without waiting for the device."""
        for name, input_ids in batch.items():
            if not name.endswith("input_ids"):
                continue
            prefix = name.removesuffix("input_ids")
            mask, positions = batch.get(f"{prefix}attention_mask"), batch.get(f"{prefix}position_ids")
            if positions is not None:
                self._tokens += input_ids.numel()
                self._pairs += positions.sum() + positions.numel()
            else:
                lengths = torch.full_like(input_ids[:, 0], input_ids.shape[1]) if mask is None else mask.sum(1)
                self._tokens += lengths.sum()
                self._pairs += (lengths * (lengths + 1)).sum() // 2

    def _mark(self, trainer: Trainer) -> None:
        self._pause()
        self._running_since = time.perf_counter()
        totals = trainer.strategy.reduce(torch.stack([self._tokens, self._pairs]), reduce_op="sum")
        tokens, pairs = totals.tolist()
        share = self._distinct_share
        self._marks.append(_Mark(self._steps, self._seconds, tokens * share, pairs * share))
        while len(self._marks) > 2 and self._steps - self._marks[1].step >= self.window_size:
            self._marks.popleft()

    def _log(self, pl_module: LightningModule) -> None:
        first, last = self._marks[0], self._marks[-1]
        seconds = last.seconds - first.seconds
        tokens, pairs = last.tokens - first.tokens, last.pairs - first.pairs
        pl_module.log("throughput/memory_mb", peak_memory_mb(self._device))
        if not tokens:  # a module that writes its own data, and measures itself
            return
        rate = (tokens * self._flops.per_token + pairs * self._flops.per_pair) / seconds
        self._peak = max(self._peak, rate)  # what was reached was no more than the peak, whatever was measured
        pl_module.log("throughput/tokens_per_s", tokens / seconds)
        pl_module.log("throughput/mfu", rate / self._peak)

    def _pause(self) -> None:
        """Stops the clock when the device has done its work; the next batch starts it again."""
        if self._running_since is None:
            return
        synchronize(self._device)
        self._seconds += time.perf_counter() - self._running_since
        self._running_since = None


@contextmanager
def beside_training(trainer: Trainer) -> Iterator[None]:
    """What is done inside does not count for a trainer's `Throughput`."""
    with ExitStack() as stack:
        for each in callbacks_of(trainer, Throughput):
            stack.enter_context(each.paused())
        yield


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: what torch allocated on a GPU, else the process' resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _num_replicas(trainer: Trainer) -> int:
    """Number of ranks that read different data; ranks of one tensor-parallel group read the same."""
    sampler_kwargs = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    return sampler_kwargs.get("num_replicas", trainer.world_size)


def _matmul_dtype(trainer: Trainer, network: torch.nn.Module) -> torch.dtype:
    precision = str(trainer.precision)
    if precision.startswith("bf16"):
        return torch.bfloat16
    if precision.startswith("16"):
        return torch.float16
    return dtype_of(network)
