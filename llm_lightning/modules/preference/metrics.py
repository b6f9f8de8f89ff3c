"""What preference optimization did to the answers, as sums that add up over micro-batches and ranks."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric

from llm_lightning.measuring.statistics import wilson_interval
from llm_lightning.modules.metrics.rewards import is_right

SIDES = ("chosen", "rejected")
OF_A_SIDE = ("count", "logprob", "moved", "reward", "tokens")
OF_ANSWERS = ("answers", "answers_right")
SUMS = (
    "loss",
    "examples",
    "pairs",
    "right",
    "margin",
    *OF_ANSWERS,
    *(f"{side}_{name}" for side in SIDES for name in OF_A_SIDE),
)


class Scored(NamedTuple):
    """The 2N answers of N pairs, chosen and rejected ones in turn, without gradient; of single answers one is missing.

    Args:
        logprobs: (2N,) of the policy.
        moved: (2N,) nats from the reference's; None without one.
        rewards: (2N,) implicit ones.
        num_tokens: (2N,).
        counts: (2N,) bool: it is an answer, and no tie.
        baseline: () KTO's reference point; None for other losses.
    """

    logprobs: Tensor
    moved: Tensor | None
    rewards: Tensor
    num_tokens: Tensor
    counts: Tensor
    baseline: Tensor | None = None

    def sums(self) -> dict[str, Tensor]:
        """All of `SUMS` but loss and examples."""
        both = self.counts[0::2] & self.counts[1::2]
        chosen, rejected = self.rewards[0::2], self.rewards[1::2]
        values = {
            "pairs": both.sum(),
            "right": torch.where(both, is_right(chosen, rejected), 0.0).sum(),
            "margin": torch.where(both, chosen - rejected, 0.0).sum(),
        }
        for first, side in enumerate(SIDES):
            counts = self.counts[first::2]
            parts = {"logprob": self.logprobs, "reward": self.rewards, "tokens": self.num_tokens}
            parts |= {} if self.moved is None else {"moved": self.moved}
            values |= {f"{side}_{name}": (part[first::2] * counts).sum() for name, part in parts.items()}
            values[f"{side}_count"] = counts.sum()
        if self.baseline is not None:
            right = (
                is_right(chosen, self.baseline) * self.counts[0::2],
                is_right(self.baseline, rejected) * self.counts[1::2],
            )
            values |= {"answers": self.counts.sum(), "answers_right": torch.stack(right).sum()}
        return values


def metrics_of(sums: Mapping[str, float]) -> dict[str, float]:
    """Means, by the names that they are logged under."""
    metrics = {"loss": sums["loss"] / max(sums["examples"], 1)}
    if pairs := sums["pairs"]:
        metrics |= {"accuracy": sums["right"] / pairs, "margin": sums["margin"] / pairs, "pairs": pairs}
    if answers := sums.get("answers"):
        metrics |= {"answer_accuracy": sums["answers_right"] / answers, "answers": answers}
    for side in SIDES:
        if count := sums[f"{side}_count"]:
            means = {name: sums[key] / count for name in OF_A_SIDE[1:] if (key := f"{side}_{name}") in sums}
            metrics |= {f"{side}_{name}": value for name, value in means.items()}
    return metrics


class PreferenceSums(nn.Module):
    """Running sums over a set of pairs, in float64 and over all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.sums: Any = nn.ModuleDict({name: SumMetric().set_dtype(torch.float64) for name in SUMS})
        self.seen: set[str] = set()

    def update(self, **sums: Tensor) -> None:
        """Add a batch's."""
        self.seen |= sums.keys()
        for name, value in sums.items():
            self.sums[name].update(value.double())

    def compute(self) -> dict[str, float]:
        """Metrics of the whole set with the accuracy's interval, empty where it was; starts anew after it."""
        sums = {name: float(self.sums[name].compute()) for name in SUMS if name in self.seen}
        for metric in self.sums.values():
            metric.reset()
        self.seen = set()
        if not sums or not sums["examples"]:
            return {}
        metrics = metrics_of(sums)
        for name, right, count in (("accuracy", "right", "pairs"), ("answer_accuracy", "answers_right", "answers")):
            if name in metrics:
                metrics[f"{name}_low"], metrics[f"{name}_high"] = wilson_interval(sums[right], sums[count])
        return metrics
