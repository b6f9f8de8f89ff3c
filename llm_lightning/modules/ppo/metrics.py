"""What is measured of a rollout and its updates."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from llm_lightning.modules.ppo.experience import Experience
from llm_lightning.objectives.policy import kl_estimate


class Averages:
    """Running means, reduced over ranks once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Count each of the values, of any shape. All ranks add the same names, if without a value."""
        values = values.detach().double()
        both = torch.stack([values.sum(), torch.full_like(values.sum(), values.numel())]).to(self.device)
        self.sums[name] = self.sums[name] + both if name in self.sums else both

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Of everything that was added on all ranks; names without any value are left out.

        Args:
            reduce: sums a tensor over ranks.
        """
        if not self.sums:
            return {}
        sums = reduce(torch.stack(list(self.sums.values()))).tolist()
        return {name: total / count for name, (total, count) in zip(self.sums, sums, strict=True) if count}


class Phases:
    """Seconds of each phase of a step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure what runs inside, to the end of the device's work."""
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[f"throughput/{name}_s"] = time.perf_counter() - started


def measure(experience: Experience, averages: Averages, num_samples: int, *, has_reference: bool) -> None:
    """Count what the completions are like, and how far the policy is from the reference and from its own sampler."""
    mask = experience.mask
    averages.add("train/entropy", experience.entropies[mask])
    averages.add("rollout/completion_length", mask.sum(1))
    averages.add("rollout/eos_rate", experience.is_finished)
    gap = (experience.sampler_logprobs - experience.logprobs)[mask].abs()
    averages.add("rollout/sampler_gap", gap[~gap.isnan()])
    if has_reference:
        averages.add("train/kl", kl_estimate(experience.logprobs, experience.ref_logprobs, "k3").sum(1))
    if num_samples > 1:
        groups = experience.scores.view(-1, num_samples)
        averages.add("rollout/equal_groups", groups.amax(1) == groups.amin(1))
