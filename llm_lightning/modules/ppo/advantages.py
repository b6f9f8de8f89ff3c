"""From scores to what each token is learned with."""

from collections.abc import Callable

import torch
from torch import Tensor

from llm_lightning.modules.ppo.experience import Experience
from llm_lightning.modules.ppo.settings import Advantages, KLPenalty
from llm_lightning.objectives import policy


def estimate_advantages(
    experience: Experience,
    method: Advantages,
    kl: KLPenalty,
    kl_coef: float,
    discounts: tuple[float, float],
    num_samples: int,
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """Put advantages and returns into the experience.

    Args:
        experience: scored and evaluated.
        method: whose advantages. Those of `gae` are whitened over all ranks; over a group they need it not.
        kl, kl_coef: what each token pays, where the penalty is part of the reward.
        discounts: gamma and lambda.
        num_samples: answers to a prompt.
        sum_over_ranks: of a tensor.

    Returns:
        What is to be logged of the critic.
    """
    e, mask = experience, experience.mask
    penalties = torch.zeros_like(e.logprobs)
    if kl.in_reward:
        penalties = kl_coef * policy.kl_estimate(e.logprobs, e.ref_logprobs, kl.estimator)
    if method != "gae":
        scores = e.scores - penalties.sum(1)
        e.advantages = policy.group_advantages(scores, num_samples, method)[:, None] * mask
        return {}
    rewards = policy.token_rewards(e.scores, penalties, mask)
    e.advantages, e.returns = policy.generalized_advantages(rewards, e.values, mask, *discounts)
    e.advantages = policy.whiten(e.advantages, sum_over_ranks(policy.moments(e.advantages[mask]))) * mask
    errors, returns = e.returns[mask] - e.values[mask], e.returns[mask]
    sums = sum_over_ranks(torch.stack([policy.moments(errors), policy.moments(returns)]))
    return {"train/explained_variance": policy.explained_variance(*sums.unbind())}
