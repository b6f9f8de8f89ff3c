"""The settings of PPO, in groups; each checks its own values and names them as the command line does."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.objectives.policy import Average, GroupBaseline, KLEstimator, Ratio
from llm_lightning.rollouts import Sampling


@dataclass
class Rollout:
    """How completions come about.

    Args:
        sampling: how their tokens are drawn.
        num_samples: completions of each prompt.
        num_slots: completions that are written at the same time; bounds memory.
        missing_eos_penalty: what a completion that was cut off for its length loses.
        max_resamples: how often the completions to a prompt are drawn again, at most, where all of them have the same
            score and so teach nothing: dynamic sampling as in DAPO (arXiv:2503.14476), which takes other prompts
            instead.
        staleness: 1: the completions of the next step are written while this one is learned from, by the weights that
            it began with. The engine has to be an `AsynchronousEngine`; one in this process copies what is trained of
            the weights.
        seed: of the completions' random numbers.
    """

    sampling: Sampling = Sampling()  # noqa: RUF009 (frozen)
    num_samples: int = 1
    num_slots: int = 64
    missing_eos_penalty: float = 0.0
    max_resamples: int = 0
    staleness: int = 0
    seed: int = 1

    def check(self) -> None:
        """Raise `UserError` for values that cannot work."""
        self.sampling.check("model.rollout.sampling")
        if self.sampling.temperature == 0:
            raise UserError(
                "model.rollout.sampling.temperature=0 always writes the same completion: PPO needs a value above 0."
            )
        check_least("model.rollout", self, num_samples=1, num_slots=1, missing_eos_penalty=0, max_resamples=0)
        if self.staleness not in (0, 1):
            raise UserError(f"model.rollout.staleness={self.staleness} must be 0 or 1.")
        if self.staleness and self.max_resamples:
            raise UserError(
                f"model.rollout.max_resamples={self.max_resamples} asks for other completions once those of a step are "
                "judged, while model.rollout.staleness=1 has those of the next one written: leave one of them out."
            )


@dataclass
class Advantages:
    """From the scores of completions to what each of their tokens is worth.

    Args:
        kind: `gae`: by a critic (PPO); `grpo`, `dr_grpo`, `rloo`: over the other completions of the prompt, without one
            (see `group_advantages`).
        gamma: discount of a token, of `gae`; 1, as completions are short and rewarded at their end.
        lam: lambda of generalized advantage estimation.
        scale_rewards: divide scores by their standard deviation over the run so far.
    """

    kind: Literal["gae"] | GroupBaseline = "gae"
    gamma: float = 1.0
    lam: float = 0.95
    scale_rewards: bool = False

    def check(self) -> None:
        """Raise `UserError` for values that cannot work."""
        check_least("model.advantages", self, gamma=0, lam=0)
        for name in ("gamma", "lam"):
            if getattr(self, name) > 1:
                raise UserError(f"model.advantages.{name}={getattr(self, name)} must be at most 1.")


@dataclass
class Update:
    """How a rollout is trained on.

    Args:
        epochs: passes over each rollout.
        num_minibatches: optimizer steps of an epoch.
        clip_range: how far the probability of a token moves in one rollout's updates; of a sequence's ratio, published
            values are some 3e-4.
        clip_range_high: how far it may rise, where that is to be another number; 0.28 in DAPO (arXiv:2503.14476).
        ratio: `token`, or one for all tokens of a completion, `sequence` (GSPO, arXiv:2507.18071; with
            `average: completions`).
        average: what of a minibatch counts the same: all `tokens`, all `completions`, or tokens by a `constant` (see
            `token_weights`).
        max_update_kl: nats of a token between the policy that wrote and the one that is updated; beyond, the rest of
            the rollout's updates is left out. None: never.
        importance_cap: the largest weight of a token that another program drew, or earlier weights (see
            `importance_weights`); those of this process's own sampler at this step have none.
        entropy_coef: bonus for a nat of entropy.
        micro_batch_tokens: tokens of one forward and backward pass: bounds memory, changes nothing else.
    """

    epochs: int = 4
    num_minibatches: int = 1
    clip_range: float = 0.2
    clip_range_high: float | None = None
    ratio: Ratio = "token"
    average: Average = "tokens"
    max_update_kl: float | None = None
    importance_cap: float = 2.0
    entropy_coef: float = 0.0
    micro_batch_tokens: int = 8192

    def check(self) -> None:
        """Raise `UserError` for values that cannot work."""
        check_least(
            "model.update", self, epochs=1, num_minibatches=1, micro_batch_tokens=1, entropy_coef=0, importance_cap=1
        )
        if not 0 < self.clip_range < 1:
            raise UserError(f"model.update.clip_range={self.clip_range} must lie between 0 and 1.")
        if self.clip_range_high is not None and self.clip_range_high < self.clip_range:
            raise UserError(
                f"model.update.clip_range_high={self.clip_range_high} must be at least model.update.clip_range="
                f"{self.clip_range}: it is there to let unlikely tokens rise further."
            )
        if self.max_update_kl is not None and self.max_update_kl <= 0:
            raise UserError(f"model.update.max_update_kl={self.max_update_kl} must be above 0.")


@dataclass
class KLPenalty:
    """What it costs to write otherwise than the reference, the policy before training.

    Args:
        coef: cost of a nat; 0: no reference is kept, and the distance is not known.
        estimator: see `kl_estimate`. k1 in the reward is the penalty of InstructGPT, k3 in the loss that of GRPO.
        place: `reward`: each token pays in its reward. `loss`: added to the loss, differentiated through the policy.
        target: nats of a completion that `coef` is adapted to reach (arXiv:1909.08593); None: it stays as it is.
        horizon: completions over which it is adapted.
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


def check_least(group: str, settings: Any, **least: float) -> None:
    """Raise `UserError` for the first of a group's settings that is below its least value."""
    for name, value in least.items():
        if getattr(settings, name) < value:
            raise UserError(f"{group}.{name}={getattr(settings, name)} must be at least {value}.")
