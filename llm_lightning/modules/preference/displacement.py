"""Likelihood displacement: margins grow while the chosen answers themselves become unlikely (arXiv:2410.08847)."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from llm_lightning.errors import UserError


@dataclass
class Displacement:
    """What to do when the policy loses what it is to prefer.

    Args:
        action: `warn` once each time that it begins, or `stop` after this step, with a checkpoint.
        limit: nats of a token that chosen answers may fall below the reference, or without one below what they were in
            the first `window` steps. Some is usual: what falls with them is what both answers have in common. At 0.5 an
            answer of 100 tokens is e^50 times less likely than before. None: do not look.
        window: steps that are averaged. Without a reference these are other answers than at the beginning: few of them
            differ by chance.
    """

    action: Literal["warn", "stop"] = "warn"
    limit: float | None = 0.5
    window: int = 10

    def check(self) -> None:
        """Raise `UserError` for settings that cannot work."""
        if self.window < 1:
            raise UserError(f"model.displacement.window={self.window} must be at least 1.")
        if self.limit is not None and self.limit <= 0:
            raise UserError(f"model.displacement.limit={self.limit} must be above 0, or null not to look.")


class Watch:
    """Looks at each step, with a memory that goes into the checkpoint.

    Args:
        settings: what to look for.
        has_reference: whether it is told how far answers moved; else it compares them with the run's first steps.
    """

    def __init__(self, settings: Displacement, has_reference: bool = True) -> None:
        self.settings = settings
        self.has_reference = has_reference
        self.began: list[float] = []
        self.moved: list[float] = []
        self.is_displaced = False

    def look(self, nats: float) -> str | None:
        """What is wrong and was not said before.

        Args:
            nats: of a token of chosen answers: from the reference, or without one their log-probability.
        """
        settings = self.settings
        if not self.has_reference:
            if len(self.began) < settings.window:
                self.began.append(nats)
                return None
            nats -= fmean(self.began)
        self.moved = [*self.moved, nats][-settings.window :]
        was, mean = self.is_displaced, fmean(self.moved)
        is_whole = len(self.moved) == settings.window
        self.is_displaced = settings.limit is not None and is_whole and mean < -settings.limit
        if not self.is_displaced or was:
            return None
        begin = "the reference" if self.has_reference else f"those of the first {len(self.began)} steps"
        raise_beta = ", raise model.objective.beta" if self.has_reference else ""
        return (
            f"chosen answers are {-mean:.2f} nats a token below {begin} (model.displacement.limit={settings.limit}): "
            f"lower the learning rate{raise_beta} or set model.objective.sft_weight."
        )

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"began": self.began, "moved": self.moved, "is_displaced": self.is_displaced}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.began = list(state.get("began", []))  # checkpoints of before have none
        self.moved, self.is_displaced = list(state["moved"]), state["is_displaced"]
