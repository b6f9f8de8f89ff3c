"""Signs that reinforcement learning goes wrong while its reward still looks well."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, pvariance
from typing import Any, Literal

from llm_lightning.errors import UserError

SIGNIFICANT = 2.0
"""Standard errors by which the newer half of a window has to differ from the older one."""


@dataclass
class Guards:
    """What to watch, and what to do about it.

    Args:
        action: `warn` once for each sign, or `stop` after this update, with a checkpoint.
        max_kl: nats of a completion between policy and reference: beyond, the policy writes what the reference never
            would, and a reward model judges what it has never seen. 100 is far beyond what useful runs reach.
        min_entropy: nats of a token: below, the policy says one thing only and cannot explore.
        held_out: name of a reward of weight 0 that must not fall while the rewards that are trained on rise.
        window: updates over which that is judged.
    """

    action: Literal["warn", "stop"] = "warn"
    max_kl: float | None = 100.0
    min_entropy: float | None = 0.01
    held_out: str | None = None
    window: int = 40

    def check(self, weights: Mapping[str, float]) -> None:
        """Raise `UserError` for settings that cannot work; `weights` are the rewards' by name."""
        if self.held_out is not None and weights.get(self.held_out) != 0:
            held_out = ", ".join(name for name, weight in weights.items() if weight == 0) or "none"
            raise UserError(
                f"model.guards.held_out={self.held_out!r} must name a reward of weight 0 (there are: {held_out})."
            )
        if self.window < 4:
            raise UserError(f"model.guards.window={self.window} must be at least 4.")


class Watch:
    """Looks at each update's metrics, with a memory that goes into the checkpoint."""

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self.rewards: list[float] = []
        self.held_out: list[float] = []
        self.seen: list[str] = []

    def look(self, metrics: Mapping[str, float]) -> list[str]:
        """What is wrong now and was not said before."""
        signs = dict(self._signs(metrics))
        fresh = [text for name, text in signs.items() if name not in self.seen]
        self.seen = list(signs)
        return fresh

    def _signs(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        guards, signs = self.guards, []
        kl, entropy = metrics.get("train/kl", 0.0), metrics["train/entropy"]
        if guards.max_kl is not None and kl > guards.max_kl:
            text = f"KL to the reference is {kl:.1f} nats a completion (model.guards.max_kl={guards.max_kl})"
            signs.append(("kl", f"{text}: raise model.kl.coef, or lower the learning rate."))
        if guards.min_entropy is not None and entropy < guards.min_entropy:
            text = f"the policy's entropy is {entropy:.4f} nats a token (model.guards.min_entropy={guards.min_entropy})"
            signs.append(("entropy", f"{text}: raise model.kl.coef or model.update.entropy_coef."))
        if guards.held_out is not None:
            self.rewards = [*self.rewards, metrics["train/reward"]][-guards.window :]
            self.held_out = [*self.held_out, metrics[f"reward/{guards.held_out}"]][-guards.window :]
            if len(self.rewards) == guards.window and trend(self.rewards) > 0 > trend(self.held_out):
                text = f"over {guards.window} updates the reward rose and {guards.held_out!r} fell"
                signs.append(("held_out", f"{text}: the policy exploits the reward."))
        return signs

    def state_dict(self) -> dict[str, Any]:
        """The last rewards and the signs that were told, for a checkpoint."""
        return {"rewards": self.rewards, "held_out": self.held_out, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.rewards, self.held_out, self.seen = (list(state[name]) for name in ("rewards", "held_out", "seen"))


def trend(values: list[float]) -> int:
    """1 where the newer half is higher than the older one by more than chance, -1 where lower, else 0."""
    half = len(values) // 2
    older, newer = values[:half], values[half:]
    difference = fmean(newer) - fmean(older)
    error = (pvariance(older) / len(older) + pvariance(newer) / len(newer)) ** 0.5
    return 0 if abs(difference) <= SIGNIFICANT * error else 1 if difference > 0 else -1
