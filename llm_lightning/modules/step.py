"""One optimizer step, whoever makes it: Lightning's loop, PPO's own updates, or DeepSpeed's engine.

In this order:

1. Of each micro-batch: forward, `collect` of its sums, backward of the *sum* of its losses.
2. After the last: `reduce`. The sums of all micro-batches are added up over ranks and the gradients' norm is taken, in
   the step's only wait for the device.
3. `finish`: the gradients are divided by the trained tokens (or pairs) of all micro-batches and ranks, and clipped, in
   one pass over them. Where loss or norm is not finite there is no step: without gradients no torch optimizer changes
   anything, not even its moments.
4. The optimizer steps, and the gradients are freed.

So 1 x 8, 2 x 4 and 8 x 1 micro-batches, on any number of ranks, make the same step. Two cases differ in when they
divide: PPO knows the tokens of a minibatch before its first backward pass, and says what it has `divided_by`; DeepSpeed
has the gradients to itself, so that losses are divided before, by each micro-batch's own count (`newest_weight`), and
it clips by itself.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llm_lightning.errors import UserError
from llm_lightning.modules.gradients import scale, with_gradients
from llm_lightning.modules.ranks import Ranks


@dataclass(frozen=True)
class Totals:
    """What a step came to, over all micro-batches and ranks.

    Args:
        sums: what was collected, by name; `loss` is among them.
        factor: what the gradients have still to be multiplied by.
        grad_norm: Euclidean norm of the gradients once they are multiplied, before they are clipped.
    """

    sums: dict[str, float]
    factor: float
    grad_norm: float

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradients are."""
        return math.isfinite(self.grad_norm) and math.isfinite(self.sums["loss"])


class OptimizerStep:
    """Collects what a step needs to know, and makes its gradients those of the mean loss.

    Args:
        divisor: of the sums that are collected, the one that the step's loss is divided by.
        max_skipped: steps in a row that are left out before the run is stopped.

    Attributes:
        num_skipped: steps that were left out so far.
        num_skipped_in_a_row: the newest of them.
    """

    def __init__(self, divisor: str, max_skipped: int) -> None:
        self.divisor = divisor
        self.max_skipped = max_skipped
        self.num_skipped = 0
        self.num_skipped_in_a_row = 0
        self.sums: dict[str, Tensor] = {}
        self._newest: dict[str, Tensor] = {}

    def collect(self, **sums: Tensor) -> None:
        """Add a micro-batch's sums (0-d tensors), in float32 unless they are float64.

        Among them are `loss`, the one with the gradient, and the divisor.
        """
        self._newest = sums
        for name, value in sums.items():
            value = value.detach()
            value = value if value.dtype == torch.float64 else value.float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def newest_weight(self, ranks: Ranks) -> Tensor:
        """() what the newest micro-batch's loss is multiplied by, where gradients cannot be divided afterwards."""
        return ranks.count / ranks.sum(self._newest[self.divisor].float()).clamp(min=1)

    def reduce(self, norm: Tensor, ranks: Ranks, divided_by: float = 1.0) -> Totals:
        """What was collected, over all ranks; the next step begins with nothing.

        Args:
            norm: () of the gradients as they are.
            ranks: that have data of their own.
            divided_by: what the gradients, as they are, have been divided by already.
        """
        names = sorted(self.sums)
        sums = ranks.sum(torch.stack([self.sums[name].to(norm.device) for name in names]))
        self.sums = {}
        *values, norm_value = torch.cat([sums, norm.to(sums.dtype).reshape(1)]).tolist()
        totals = dict(zip(names, values, strict=True))
        divisor = max(totals[self.divisor], 1.0) / divided_by
        return Totals(totals, 1 / divisor, norm_value / divisor)

    def finish(self, optimizer: Optimizer, totals: Totals, clip_val: float | None, clip_algorithm: Any = None) -> bool:
        """Divide and clip the gradients; where the step is not finite drop them, count it, and return False.

        Args:
            optimizer: holds the parameters.
            totals: from `reduce`, over the gradients that are there now.
            clip_val: bound of the norm, or of each number; None or 0: none.
            clip_algorithm: `norm` (by default) or `value`.
        """
        if not totals.is_finite:
            optimizer.zero_grad(set_to_none=True)
            self.num_skipped += 1
            self.num_skipped_in_a_row += 1
            return False
        self.num_skipped_in_a_row = 0
        parameters = with_gradients(optimizer)
        factor, by_value = totals.factor, clip_algorithm == "value"
        if clip_val and not by_value:
            factor *= min(1.0, clip_val / (totals.grad_norm + 1e-6))  # as torch's clip_grad_norm_
        scale([p.grad for p in parameters], factor)
        if clip_val and by_value:
            nn.utils.clip_grad_value_(parameters, clip_val)
        return True

    def check(self) -> None:
        """Raise `UserError` once too many steps in a row were left out."""
        if self.num_skipped_in_a_row >= self.max_skipped:
            raise UserError(
                f"{self.num_skipped_in_a_row} steps in a row were not finite (model.max_skipped_steps). Lower the "
                "learning rate, lengthen model.schedule.warmup, or start again from an earlier checkpoint."
            )
