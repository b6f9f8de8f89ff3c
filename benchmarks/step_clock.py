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
        steps: steps that are timed.
        device: `cpu` or `cuda`.
    """

    def __init__(self, result: Path | str, warmup: int, steps: int, device: str = "cpu") -> None:
        self.result, self.warmup, self.steps, self.device = Path(result), warmup, steps, device
        self.done = 0
        self._figures: dict[str, float] = {}

    def tick(self) -> None:
        """One optimizer step has ended."""
        self.done += 1
        if self.done == self.warmup:
            self._synchronize()
            self._wall, self._cpu = time.perf_counter(), time.process_time()
        elif self.done == self.warmup + self.steps:
            self._synchronize()
            self._figures = {
                "wall_s": time.perf_counter() - self._wall,
                "cpu_s": time.process_time() - self._cpu,
                "peak_memory_mb": peak_memory(self.device) / 2**20,
            }

    def report(self, loss: float) -> None:
        """Write the figures and the loss of the last step.

        Raises:
            RuntimeError: the contender made fewer or more steps than it was asked for.
        """
        if not self._figures or self.done > self.warmup + self.steps:
            raise RuntimeError(f"{self.done} steps were made instead of {self.warmup} + {self.steps}")
        self.result.write_text(json.dumps(self._figures | {"loss": loss, "steps": self.steps}))

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


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
