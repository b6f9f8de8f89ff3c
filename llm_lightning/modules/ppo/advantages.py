"""From scores to the advantage of each token."""

import torch

from llm_lightning.modules.ppo.experience import Experience
from llm_lightning.modules.ppo.settings import Advantages, KLPenalty
from llm_lightning.modules.ranks import Ranks
from llm_lightning.objectives import policy


def estimate_advantages(
    experience: Experience,
    settings: Advantages,
    kl: KLPenalty,
    kl_coef: float,
    num_samples: int,
    ranks: Ranks,
) -> dict[str, float]:
    """Put advantages and returns into the experience.

    Args:
        experience: scored and evaluated.
        settings: which advantages. Those of `gae` are whitened over all ranks; over a group they need it not.
        kl, kl_coef: what each token pays, where the penalty is part of the reward.
        num_samples: completions of a prompt.
        ranks: that have completions of their own.

    Returns:
        What is to be logged of the critic.
    """
    e, mask = experience, experience.mask
    penalties = torch.zeros_like(e.logprobs)
    if kl.in_reward:
        penalties = kl_coef * policy.kl_estimate(e.logprobs, e.ref_logprobs, kl.estimator)
    if settings.kind != "gae":
        scores = e.scores - penalties.sum(1)
        e.advantages = policy.group_advantages(scores, num_samples, settings.kind)[:, None] * mask
        return {}
    rewards = policy.token_rewards(e.scores, penalties, mask)
    e.advantages, e.returns = policy.generalized_advantages(rewards, e.values, mask, settings.gamma, settings.lam)
    e.advantages = policy.whiten(e.advantages, ranks.sum(policy.moments(e.advantages[mask]))) * mask
    errors, returns = e.returns[mask] - e.values[mask], e.returns[mask]
    sums = ranks.sum(torch.stack([policy.moments(errors), policy.moments(returns)]))
    return {"train/explained_variance": policy.explained_variance(*sums.unbind())}
