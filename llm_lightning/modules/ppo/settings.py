"""Settings of PPO that belong together."""

from dataclasses import dataclass, replace
from typing import Literal

from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.objectives.policy import KLEstimator

Advantages = Literal["gae", "grpo", "rloo"]


@dataclass
class KLPenalty:
    """What it costs to write otherwise than the reference, the policy before training.

    Args:
        coef: cost of a nat; 0: no reference is kept, and the distance is not known.
        estimator: see `kl_estimate`. k1 in the reward is the penalty of InstructGPT, k3 in the loss that of GRPO.
        place: `reward`: each token pays in its reward. `loss`: added to the loss, differentiated through the policy.
        target: nats of an answer that `coef` is adapted to reach (arXiv:1909.08593); None: it stays as it is.
        horizon: answers over which it is adapted.
    """

    coef: float = 0.05
    estimator: KLEstimator = "k1"
    place: Literal["reward", "loss"] = "reward"
    target: float | None = None
    horizon: int = 10_000

    @property
    def in_reward(self) -> bool:
        """Whether tokens pay in their rewards."""
        return self.coef > 0 and self.place == "reward"

    @property
    def in_loss(self) -> bool:
        """Whether the loss has it as a term."""
        return self.coef > 0 and self.place == "loss"

    def check(self) -> None:
        """Raise `UserError` for values that cannot work."""
        if self.coef < 0:
            raise UserError(f"model.kl.coef={self.coef} must not be negative.")
        if self.target is not None and (self.target <= 0 or self.coef == 0):
            raise UserError(f"model.kl.target={self.target} must be above 0, and needs a model.kl.coef to start from.")
        if self.horizon < 1:
            raise UserError(f"model.kl.horizon={self.horizon} must be at least 1.")
        if self.place == "loss" and self.estimator == "k1":
            raise UserError(
                "model.kl.place=loss with model.kl.estimator=k1 has a gradient of zero on average, and no effect: take "
                "k2 or k3."
            )


@dataclass
class CriticSettings:
    """Who expects the rewards, where advantages are estimated by `gae`.

    Args:
        kind: `trunk`: a head on the policy's own states, which costs next to nothing; `network`: a network of its own,
            which doubles time and memory and keeps the two objectives apart.
        path: weights that a network of its own starts from; by default those of the policy.
        coef: of its loss.
        clip_range: how far a value moves in one rollout's updates.
        head_lr: learning rate of the head, which starts from zero while the rest is trained already.
    """

    kind: Literal["trunk", "network"] = "trunk"
    path: str | None = None
    coef: float = 0.1
    clip_range: float = 0.2
    head_lr: float = 1e-3

    def check(self) -> None:
        """Raise `UserError` for settings that exclude each other."""
        if self.path is not None and self.kind == "trunk":
            raise UserError(f"model.critic.path={self.path!r} needs model.critic.kind=network.")
        for name in ("coef", "clip_range", "head_lr"):
            if getattr(self, name) <= 0:
                raise UserError(f"model.critic.{name}={getattr(self, name)} must be above 0.")

    def backbone(self, policy: Backbone) -> Backbone | None:
        """What a network of its own is built from; None: the head reads the policy's states."""
        if self.kind == "trunk":
            return None
        return replace(policy, path=self.path or policy.path, quantization=None)
