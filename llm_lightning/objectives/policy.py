"""Policy gradients: what a reward on a whole completion does to each of its tokens.

Shapes: B completions of at most R tokens, padded on the right; `mask` (B, R) bool is true on real tokens, EOS included.
`logprobs` are of the sampled tokens, and `values[:, t]` is what the critic expects before token t is written. Functions
that need a statistic of the whole batch take it as `moments`, which add up over ranks.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]
GroupBaseline = Literal["grpo", "dr_grpo", "rloo"]
Ratio = Literal["token", "sequence"]
Average = Literal["tokens", "completions", "constant"]

EPS = 1e-8
GROUP_EPS = 1e-4
"""Added to a group's standard deviation: rewards that differ by less than this are as good as equal."""


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """KL(policy || reference) of each token, estimated from the one that the policy drew.

    With r = ref / policy: k1 = -log r has no bias but may be negative, k2 = (log r)^2 / 2 has a bias but little
    variance, k3 = r - 1 - log r has no bias and is never negative (Schulman, "Approximating KL divergence", 2020).

    Args:
        logprobs, ref_logprobs: of the drawn tokens, of any one shape.
        estimator: which.
    """
    log_ratio = ref_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return log_ratio.expm1() - log_ratio


def adapted_kl_coef(coef: float, kl: float, target: float, num_samples: int, horizon: int) -> float:
    """The next KL coefficient of the proportional controller of Ziegler et al. (arXiv:1909.08593, section 2.2).

    Args:
        coef: the one that was used.
        kl: what came of it: nats of a completion, summed over its tokens.
        target: what `kl` should be.
        num_samples: completions since the last adaptation.
        horizon: completions after which an error of 20 % has changed the coefficient by as much.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * num_samples / horizon)


def token_rewards(scores: Tensor, penalties: Tensor, mask: Tensor) -> Tensor:
    """(B, R) rewards: each token pays its penalty, the last real one receives the score.

    Args:
        scores: (B,), one for each completion.
        penalties: (B, R), for example the KL coefficient times the estimate; what it holds on padding is not read.
        mask: (B, R); a completion without a token cannot be rewarded and has only zeros.
    """
    rewards = torch.where(mask, -penalties, 0.0)
    last = mask.sum(1) - 1
    rows = (last >= 0).nonzero().squeeze(1)
    rewards[rows, last[rows]] += scores[rows]
    return rewards


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (arXiv:1506.02438).

    Args:
        rewards, values, mask: (B, R). The completion ends with its last real token, whether by EOS or for its length.
        gamma: discount of a token.
        lam: 1 trusts the rewards alone, 0 the critic alone.

    Returns:
        advantages and returns, (B, R), zero on padding.
    """
    values = torch.where(mask, values, 0.0)
    rewards = torch.where(mask, rewards, 0.0)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0.0)
        advantages[:, t], next_value = next_advantage, values[:, t]
    return advantages, torch.where(mask, advantages + values, 0.0)


def group_advantages(scores: Tensor, num_samples: int, baseline: GroupBaseline) -> Tensor:
    """Advantages of completions over the others to the same prompt.

    `grpo` divides by the group's standard deviation as well (DeepSeekMath, arXiv:2402.03300); `dr_grpo` does not, as
    that makes much of questions that are nearly always or never answered (arXiv:2503.20783); `rloo` compares with the
    mean of the *other* completions, an unbiased baseline (arXiv:2402.14740).

    Args:
        scores: (B,), the completions to a prompt one after the other.
        num_samples: completions to a prompt, at least 2.
        baseline: which.
    """
    groups = scores.view(-1, num_samples)
    centred = groups - groups.mean(1, keepdim=True)
    if baseline == "rloo":
        return (centred * num_samples / (num_samples - 1)).flatten()
    if baseline == "dr_grpo":
        return centred.flatten()
    return (centred / (groups.std(1, keepdim=True) + GROUP_EPS)).flatten()


def moments(values: Tensor) -> Tensor:
    """(3,) float64: count, sum and sum of squares, which add up over ranks."""
    values = values.double()
    return torch.stack([torch.full_like(values.sum(), values.numel()), values.sum(), values.square().sum()])


def mean_and_std(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (of the population) from `moments`."""
    count = sums[0].clamp(min=1)
    mean = sums[1] / count
    return mean, (sums[2] / count - mean.square()).clamp(min=0).sqrt()


def whiten(values: Tensor, sums: Tensor) -> Tensor:
    """Values with mean 0 and standard deviation 1 over everything that went into `sums`."""
    mean, std = mean_and_std(sums)
    return ((values - mean) / (std + EPS)).to(values.dtype)


class PolicyLoss(NamedTuple):
    """Of each token, with gradient only in `loss`.

    Args:
        loss: what is minimized.
        is_clipped: whether the clip took the gradient.
        kl: k3 estimate of KL(old policy || policy): how far the updates since the rollout have gone.
    """

    loss: Tensor
    is_clipped: Tensor
    kl: Tensor


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_range: float,
    clip_range_high: float | None = None,
    lengths: Tensor | None = None,
) -> PolicyLoss:
    """The clipped surrogate of PPO (arXiv:1707.06347), for tokens of any one shape.

    Args:
        logprobs, old_logprobs, advantages: of the tokens.
        clip_range: how far the ratio of a token's probabilities may fall below 1 for it, and rise above it.
        clip_range_high: how far it may rise, where that is another number (DAPO's clip-higher, arXiv:2503.14476).
        lengths: (B,) tokens of each completion, of M tokens one after the other, (M,): all tokens of a completion then
            have one ratio, the geometric mean of theirs (GSPO, arXiv:2507.18071). None: each has its own.
    """
    log_ratio = logprobs - old_logprobs
    with torch.no_grad():
        kl = log_ratio.expm1() - log_ratio
    if lengths is not None:
        log_ratio = completion_means(log_ratio, lengths)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + (clip_range if clip_range_high is None else clip_range_high))
    loss, bounded = -advantages * ratio, -advantages * clipped
    return PolicyLoss(torch.maximum(loss, bounded), bounded > loss, kl)


def importance_weights(logprobs: Tensor, sampler_logprobs: Tensor, cap: float) -> Tensor:
    """How much likelier each token is to the policy that is trained than to the one that drew it, at most `cap`.

    A server computes with other kernels, and perhaps other precision: its tokens come from a policy that is not quite
    the trained one. With these weights the gradient is of the trained one again, but for what the cap cuts off, which
    would be nearly all of the variance (Ionides, "Truncated Importance Sampling", 2008).

    Args:
        logprobs: of the policy as it is in the trainer before its updates, of any one shape.
        sampler_logprobs: of what drew the tokens; 1 is the weight of those for which it is not a number.
        cap: the largest weight, at least 1.
    """
    return (logprobs - sampler_logprobs).exp().clamp(max=cap).nan_to_num(nan=1.0).detach()


def completion_means(values: Tensor, lengths: Tensor) -> Tensor:
    """(M,) for each token the mean over its completion.

    Args:
        values: (M,), completion after completion.
        lengths: (B,) tokens of each.
    """
    completion = torch.arange(len(lengths), device=values.device).repeat_interleave(lengths)
    sums = torch.zeros(len(lengths), dtype=values.dtype, device=values.device).index_add(0, completion, values)
    return (sums / lengths.clamp(min=1))[completion]


def token_weights(lengths: Tensor, average: Average, max_tokens: int) -> Tensor:
    """(M,) float32, what each token's loss counts in a sum that is then divided by the number of tokens (`tokens`), or
    else of completions.

    Args:
        lengths: (B,) tokens of each completion.
        average: `tokens`: all tokens count the same, so that long completions count for more (DAPO, arXiv:2503.14476).
            `completions`: all completions count the same (GRPO as published, and GSPO). `constant`: all tokens count
            the same, and the more there are, the longer the step (Dr. GRPO, arXiv:2503.20783).
        max_tokens: that a completion can have, the constant.
    """
    if average == "completions":
        return (1 / lengths.clamp(min=1).float()).repeat_interleave(lengths)
    weight = 1.0 if average == "tokens" else 1 / max_tokens
    return torch.full((int(lengths.sum()),), weight, device=lengths.device)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Half the squared error of each token; a step of the critic beyond `clip_range` of its old value earns nothing."""
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return torch.maximum((values - returns).square(), (clipped - returns).square()) / 2


def explained_variance(errors: Tensor, returns: Tensor) -> float:
    """Share of the returns' variance that the critic foresaw: 1 all of it, 0 none, negative worse than a constant.

    Args:
        errors: `moments` of returns - values.
        returns: `moments` of the returns.
    """
    variance = float(mean_and_std(returns)[1]) ** 2
    return 1 - float(mean_and_std(errors)[1]) ** 2 / variance if variance > 0 else 0.0
