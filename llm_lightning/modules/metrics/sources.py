"""The validation loss of each source of a mixture."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric


class SourceLosses(nn.Module):
    """Sums over batches, each of one source.

    Args:
        names: of the sources, for metrics.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)
        self.nll: Any = nn.ModuleList(_sum() for _ in names)
        self.tokens: Any = nn.ModuleList(_sum() for _ in names)

    def update(self, source: int, nll: Tensor, tokens: Tensor) -> None:
        """Add a batch; -1 is one of blank rows alone."""
        if source >= 0:
            self.nll[source].update(nll)
            self.tokens[source].update(tokens)

    def compute(self) -> dict[str, float]:
        """The loss of each source that has tokens, over all ranks, and begin anew."""
        losses = {}
        for name, nll, tokens in zip(self.names, self.nll, self.tokens, strict=True):
            if num_tokens := float(tokens.compute()):
                losses[f"loss/{name}"] = float(nll.compute()) / num_tokens
            nll.reset()
            tokens.reset()
        return losses


def _sum() -> Any:
    return SumMetric().set_dtype(torch.float64)
