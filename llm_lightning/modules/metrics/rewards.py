"""How well rewards tell the better of two responses, and how far their confidence can be trusted."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric, PearsonCorrCoef, SpearmanCorrCoef, SumMetric
from torchmetrics.classification import BinaryCalibrationError

from llm_lightning.measuring.statistics import wilson_interval
from llm_lightning.models.normalization import Normalization

NUM_BINS = 20
"""Of confidence between 0 and 1; that of a choice between two lies in the upper ten."""

SUMS = (
    "loss", "pairs", "decided", "right", "longer", "right_if_longer", "shorter", "right_if_shorter",
    "margin", "chosen", "rejected", "squares",
)  # fmt: skip


class Reliability(NamedTuple):
    """A reliability diagram (DeGroot & Fienberg, 1983), a value for each bin of confidence that has pairs in it.

    Args:
        confidence: mean probability that the network gave to the response that it preferred.
        accuracy: how often people preferred it too.
        num_pairs: in each bin.
        ece: expected calibration error, the mean distance of the two, weighted by the pairs.
    """

    confidence: list[float]
    accuracy: list[float]
    num_pairs: list[int]
    ece: float


class ReliabilityBins(Metric):
    """Sums in bins of confidence, over all ranks."""

    count: Tensor
    confidence: Tensor
    right: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("count", "confidence", "right"):
            self.add_state(name, torch.zeros(NUM_BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, confidence: Tensor, right: Tensor) -> None:
        """Add pairs (N,)."""
        bins = (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        for name, values in (("count", torch.ones_like(confidence)), ("confidence", confidence), ("right", right)):
            total = getattr(self, name)
            total.index_add_(0, bins, values.to(total.dtype))  # DeepSpeed makes every number of a module float32

    def compute(self) -> Tensor:
        """(3, NUM_BINS): pairs, and the sums of their confidence and of how many were right."""
        return torch.stack([self.count, self.confidence, self.right])


class PreferenceMetrics(nn.Module):
    """Running metrics over a set of pairs; ties count in the loss and the rewards' distribution alone.

    Attributes:
        reliability: of the last set that was computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sums: Any = nn.ModuleDict({name: SumMetric().set_dtype(torch.float64) for name in SUMS})
        self.calibration = BinaryCalibrationError(n_bins=NUM_BINS)
        self.bins = ReliabilityBins()
        self.by_length = PearsonCorrCoef()
        self.by_score = SpearmanCorrCoef()
        self.reliability: Reliability | None = None

    def update(self, chosen: Tensor, rejected: Tensor, losses: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Add a batch: rewards and losses (N,), and `ties`, lengths and scores of the batch."""
        decided = ~batch["ties"]
        difference = (chosen - rejected)[decided]
        longer = (batch["chosen_lengths"] - batch["rejected_lengths"])[decided]
        right = is_right(chosen, rejected)[decided]
        values = {
            "loss": losses, "pairs": torch.ones_like(losses), "decided": torch.ones_like(right), "right": right,
            "longer": longer > 0, "right_if_longer": right[longer > 0],
            "shorter": longer < 0, "right_if_shorter": right[longer < 0],
            "margin": difference, "chosen": chosen, "rejected": rejected,
            "squares": chosen.double().square() + rejected.double().square(),
        }  # fmt: skip
        for name, each in values.items():
            self.sums[name].update(each.double().sum())
        self._update_calibration(difference)
        if len(difference):
            self.by_length.update(difference, longer.to(difference.dtype))
        self._update_scores(torch.cat([chosen, rejected]), batch)

    def compute(self) -> tuple[dict[str, float], Normalization]:
        """Metrics of the whole set over all ranks, by name, and its rewards' scale; starts anew after it."""
        sums = {name: float(metric.compute()) for name, metric in self.sums.items()}
        normalization = Normalization.of_sums(2 * sums["pairs"], sums["chosen"] + sums["rejected"], sums["squares"])
        metrics = self._metrics(sums, normalization) if sums["pairs"] else {}
        for metric in (*self.sums.values(), self.calibration, self.bins, self.by_length, self.by_score):
            metric.reset()
        return metrics, normalization

    def _metrics(self, sums: dict[str, float], normalization: Normalization) -> dict[str, float]:
        num_pairs, decided = sums["pairs"], sums["decided"]
        metrics = {
            "loss": sums["loss"] / num_pairs,
            "pairs": num_pairs,
            "reward_mean": normalization.mean,
            "reward_std": normalization.std,
            "chosen_reward": sums["chosen"] / num_pairs,
            "rejected_reward": sums["rejected"] / num_pairs,
        }
        if decided:
            low, high = wilson_interval(sums["right"], decided)
            metrics |= {"accuracy": sums["right"] / decided, "accuracy_low": low, "accuracy_high": high}
            metrics |= {"margin": sums["margin"] / decided}
        for name in ("longer", "shorter"):
            if sums[name]:
                metrics[f"accuracy_if_{name}"] = sums[f"right_if_{name}"] / sums[name]
        if self.calibration.update_called:
            metrics["ece"] = float(self.calibration.compute())
            sums_of_bins = self.bins.compute()
            count, confidence, right = sums_of_bins[:, sums_of_bins[0] > 0]
            means = (confidence / count).tolist(), (right / count).tolist()
            self.reliability = Reliability(*means, count.long().tolist(), metrics["ece"])
        correlations = {"length_correlation": self.by_length, "score_rank_correlation": self.by_score}
        for name, metric in correlations.items():
            if metric.update_called and math.isfinite(value := float(metric.compute())):
                metrics[name] = value
        return metrics

    def _update_calibration(self, difference: Tensor) -> None:
        # At equal rewards nothing was preferred.
        difference = difference[difference != 0]
        if len(difference):
            confidence, right = torch.sigmoid(difference.abs()), (difference > 0).long()
            self.calibration.update(confidence, right)
            self.bins.update(confidence, right)

    def _update_scores(self, rewards: Tensor, batch: Mapping[str, Tensor]) -> None:
        scores = torch.cat([batch["chosen_scores"], batch["rejected_scores"]])
        known = ~scores.isnan()
        if known.any():
            self.by_score.update(rewards[known], scores[known])


def is_right(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(N,) float64: 1 where the chosen response has the higher reward, a half where both have the same."""
    return (chosen > rejected).double() + 0.5 * (chosen == rejected).double()
