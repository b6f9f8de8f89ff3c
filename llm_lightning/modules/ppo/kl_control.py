"""The cost of leaving the reference: fixed, or adapted on the way."""

from collections.abc import Mapping
from typing import Any

from llm_lightning.modules.ppo.settings import KLPenalty
from llm_lightning.objectives.policy import adapted_kl_coef


class KLCoefficient:
    """What a nat costs now, with a memory that goes into the checkpoint.

    Args:
        settings: where it begins, and what it is adapted to.
    """

    def __init__(self, settings: KLPenalty) -> None:
        self.settings = settings
        self.value = settings.coef

    def adapt(self, kl: float, num_completions: int) -> None:
        """Take note of what it led to: `kl` nats of a completion, over so many since the last time."""
        if self.settings.target is not None:
            self.value = adapted_kl_coef(self.value, kl, self.settings.target, num_completions, self.settings.horizon)

    def state_dict(self) -> dict[str, Any]:
        """The coefficient, as plain values for a checkpoint."""
        return {"kl_coef": self.value, "kl_began": self.settings.coef}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, unless the run goes on with another coefficient: that takes effect."""
        if state.get("kl_began", self.settings.coef) == self.settings.coef:
            self.value = state["kl_coef"]
