"""Holding the schedule while the validation loss is too high."""

import math
from typing import Any

from callbacks.errors import CallbackError


class Guard:
    """Compares each validation loss with the lowest one before pruning.

    Args:
        max_loss_increase: as a share of the loss before pruning, above 0. 0.05 is a factor of 1.16 in perplexity at a
            loss of 3.

    Attributes:
        reference: lowest loss before pruning; without one the guard holds until the first validation.
        kept_sparsity: highest sparsity whose validation was within the limit.

    Raises:
        CallbackError: the share is not above 0.
    """

    def __init__(self, max_loss_increase: float) -> None:
        if not max_loss_increase > 0:
            raise CallbackError(f"Pruning.max_loss_increase={max_loss_increase} must be above 0, for example 0.05.")
        self.max_loss_increase = max_loss_increase
        self.reference: float | None = None
        self.kept_sparsity = 0.0
        self.last_loss = math.nan

    @property
    def limit(self) -> float:
        """The highest loss that does not hold the schedule."""
        return math.nan if self.reference is None else self.reference * (1 + self.max_loss_increase)

    @property
    def holds(self) -> bool:
        """Whether the schedule has to wait; a loss that is not a number is too high."""
        return not self.last_loss <= self.limit

    def judge(self, loss: float, sparsity: float) -> None:
        """Take a validation loss at a sparsity into account."""
        if sparsity == 0 and not math.isnan(loss):
            self.reference = loss if self.reference is None else min(self.reference, loss)
        self.last_loss = loss
        if not self.holds:
            self.kept_sparsity = max(self.kept_sparsity, sparsity)

    def in_words(self, sparsity: float, held: float, unit: str) -> str:
        """What the guard did, for the report."""
        if self.reference is None:
            return "guard: there was no validation before pruning, so it held to the end."
        text = f"guard: limit {self.limit:.4g} ({self.max_loss_increase:.0%} over {self.reference:.4g})"
        text += f", held for {held:,.0f} {unit}" if held else ", never held"
        if self.holds:
            text += f"; the loss is {self.last_loss:.4g} at {sparsity:.1%}"
        return f"{text}; sparsity that it could keep: {self.kept_sparsity:.1%}."

    def state_dict(self) -> dict[str, Any]:
        """What it has seen."""
        return {"reference": self.reference, "kept_sparsity": self.kept_sparsity, "last_loss": self.last_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.reference, self.kept_sparsity = state["reference"], state["kept_sparsity"]
        self.last_loss = state["last_loss"]
