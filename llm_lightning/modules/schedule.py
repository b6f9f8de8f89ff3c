"""Learning-rate schedules: a warm-up, then cosine, linear, constant, or WSD, over steps or over tokens."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from llm_lightning.errors import UserError


@dataclass
class Schedule:
    """Factor on each parameter group's learning rate.

    Args:
        kind: what follows the warm-up. `cosine` and `linear` fall to `min_ratio` at the end; `constant` stays; `wsd`
            (warm-up, stable, decay: arXiv:2404.06395) stays until its last `decay` share, then falls linearly.
        warmup: below 1 a share of the run, else a number of `unit`s. 0.01 protects Adam's first moments.
        decay: share of the run in which `wsd` falls.
        min_ratio: the last factor, as a share of the peak. 0.1 is what most published pretraining runs use.
        unit: what the schedule counts: optimizer `steps`, or trained `tokens`, which stay comparable when the batch
            size changes.
        total: length in units; by default the whole run (`trainer.max_steps`). Needed where the unit is tokens.
    """

    kind: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup: float = 0.01
    decay: float = 0.2
    min_ratio: float = 0.1
    unit: Literal["steps", "tokens"] = "steps"
    total: int | None = None

    def check(self) -> None:
        """Raise `UserError` for settings that cannot work."""
        if not 0 <= self.min_ratio <= 1:
            raise UserError(f"model.schedule.min_ratio={self.min_ratio} must lie between 0 and 1.")
        if not 0 < self.decay <= 1:
            raise UserError(f"model.schedule.decay={self.decay} must lie between 0 and 1.")
        if self.warmup < 0:
            raise UserError(f"model.schedule.warmup={self.warmup} must not be negative.")
        if self.unit == "tokens" and self.total is None and (self.kind != "constant" or 0 < self.warmup < 1):
            raise UserError(
                "model.schedule.unit=tokens needs model.schedule.total, the number of tokens the schedule spans."
            )
        if self.total is not None and self.warmup >= max(1, self.total):
            raise UserError(
                f"model.schedule.warmup={self.warmup} must be shorter than model.schedule.total={self.total}."
            )

    def factor(self, done: float, total: float) -> float:
        """Factor on the peak learning rate.

        Args:
            done: units before this step.
            total: units of the whole schedule, which may be infinite where `kind` is constant.
        """
        warmup = self.warmup * total if self.warmup < 1 else self.warmup
        if warmup and math.isfinite(warmup) and done < warmup:
            # The first step must move: it gets the rate of its own end. In tokens, of any small part of the way.
            return max(done + 1, 1) / (warmup + 1) if self.unit == "steps" else max(done / warmup, 1e-3)
        if self.kind == "constant" or not math.isfinite(total):
            return 1.0
        left = 1 - min(1.0, (done - warmup) / max(1.0, total - warmup))
        if self.kind == "wsd":
            left = min(1.0, left * (total - warmup) / (self.decay * total))
        elif self.kind == "cosine":
            left = 0.5 * (1 - math.cos(math.pi * left))
        return self.min_ratio + (1 - self.min_ratio) * left

    def scheduler(self, optimizer: Optimizer, whole_run: float, tokens_seen: Callable[[], int]) -> LambdaLR:
        """This schedule on an optimizer.

        Args:
            optimizer: whose groups' rates are the peaks.
            whole_run: its length where `total` does not say.
            tokens_seen: so far, where they are counted.
        """
        total = float(self.total or whole_run)
        if self.unit == "tokens":
            return LambdaLR(optimizer, lambda _: self.factor(tokens_seen(), total))
        return LambdaLR(optimizer, lambda step: self.factor(step, total))
