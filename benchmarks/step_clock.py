"""The one stopwatch of all contenders: wall time, processor time and peak memory of the steps after the warm-up."""

import json
import resource
import time
from pathlib import Path

import torch


class StepClock:
    """Counts optimizer steps and times those after the warm-up; the host waits for a GPU only at both ends.

    Args:
        result: JSON file that `report` writes.
        warmup: steps that are not timed; at least 1, since the first compiles and fills the allocator.
        steps: steps that are timed; None where only the trainer knows how many there are, which `expect` then says.
        device: `cpu` or `cuda`.
    """

    def __init__(self, result: Path | str, warmup: int, steps: int | None, device: str = "cpu") -> None:
        self.result, self.warmup, self.steps, self.device = Path(result), warmup, steps, device
        self.done = 0
        self._figures: dict[str, float] = {}

    def expect(self, num_steps: int) -> None:
        """Time all steps of the run but those of the warm-up.

        Raises:
            RuntimeError: the warm-up leaves none.
        """
        if num_steps <= self.warmup:
            raise RuntimeError(f"the run has {num_steps} steps, and the warm-up takes {self.warmup}")
        self.steps = num_steps - self.warmup

    @property
    def is_timing(self) -> bool:
        """Whether the step that has begun is timed."""
        return self.done >= self.warmup

    def tick(self) -> None:
        """One optimizer step has ended."""
        self.done += 1
        if self.done == self.warmup:
            self._synchronize()
            self._wall, self._cpu = time.perf_counter(), time.process_time()
        elif self.steps is not None and self.done == self.warmup + self.steps:
            self._synchronize()
            self._figures = {
                "wall_s": time.perf_counter() - self._wall,
                "cpu_s": time.process_time() - self._cpu,
                "peak_memory_mb": peak_memory(self.device) / 2**20,
            }

    def report(self, loss: float, **counts: float) -> None:
        """Write the figures, the loss, and what else was counted.

        Raises:
            RuntimeError: the contender made fewer or more steps than it was asked for.
        """
        if not self._figures or self.steps is None or self.done > self.warmup + self.steps:
            raise RuntimeError(f"{self.done} steps were made instead of {self.warmup} + {self.steps}")
        self.result.write_text(json.dumps(self._figures | {"loss": loss, "steps": self.steps} | counts))

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


class Stopwatch:
    """Adds up what happens inside its `with` blocks, worker processes that have ended included."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0

    def __enter__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()

    def __exit__(self, *_: object) -> None:
        self.wall_s += time.perf_counter() - self._wall
        self.cpu_s += _cpu_seconds() - self._cpu

    def report(self, result: Path | str, **counts: float) -> None:
        """Write the sums, this process' peak memory, and what else was counted."""
        figures = {"wall_s": self.wall_s, "cpu_s": self.cpu_s, "peak_memory_mb": peak_memory("cpu") / 2**20}
        Path(result).write_text(json.dumps(figures | counts))


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_memory(device: str) -> int:
    """Bytes: allocated on the GPU, or resident in this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # ru_maxrss would also count the parent, as it was when it started this process.
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
