"""What a completion's tokens cost in an update: the policy's part, the bonus and the penalty, and the critic's part."""

from collections.abc import Sequence

from torch import Tensor

from llm_lightning.modules.ppo.experience import Experience
from llm_lightning.modules.ppo.metrics import Averages
from llm_lightning.modules.ppo.settings import CriticSettings, KLPenalty, Update
from llm_lightning.objectives import policy
from llm_lightning.objectives.language import TokenLogprobs


def token_losses(
    now: TokenLogprobs,
    values: Tensor | None,
    experience: Experience,
    rows: Sequence[int],
    settings: tuple[Update, KLPenalty, CriticSettings],
    kl_coef: float,
    max_tokens: int,
    averages: Averages,
) -> tuple[Tensor, Tensor]:
    """Of M tokens of these rows: the loss (M,), weighted as `Update.average` has it, and without gradient the KL (M,)
    from the policy that wrote them.

    Args:
        now: (M,) logprobs, and entropies where they earn a bonus, of the policy as it is.
        values: (M,) of the critic as it is; None without one.
        experience: what the rows were when they were written.
        rows: of the experience.
        settings: of the update, the penalty and the critic.
        kl_coef: what a nat costs now, where the penalty is part of the loss.
        max_tokens: that a completion can have.
        averages: each part is counted there.
    """
    update, kl, critic = settings
    old, ref, advantages, old_values, returns = experience.take(
        rows, "logprobs", "ref_logprobs", "advantages", "values", "returns"
    )
    lengths = experience.mask[rows].sum(1)
    of_completions = lengths if update.ratio == "sequence" else None
    clip = update.clip_range, update.clip_range_high
    actor = policy.policy_loss(now.logprobs, old, advantages, *clip, of_completions)
    averages.add("train/policy_loss", actor.loss)
    averages.add("train/clip_share", actor.is_clipped)
    averages.add("train/update_kl", actor.kl)
    loss = actor.loss
    if experience.is_off_policy:
        weights = importance(old, experience, rows, update.importance_cap, averages)
        loss = weights * loss
    if update.entropy_coef:
        loss = loss - update.entropy_coef * now.entropies
    if kl.in_loss:
        loss = loss + kl_coef * policy.kl_estimate(now.logprobs, ref, kl.estimator)
    if values is not None:
        errors = policy.value_loss(values, old_values, returns, critic.clip_range)
        averages.add("train/value_loss", errors)
        loss = loss + critic.coef * errors
    averages.add("train/loss", loss)
    return loss * policy.token_weights(lengths, update.average, max_tokens), actor.kl


def importance(old: Tensor, experience: Experience, rows: Sequence[int], cap: float, averages: Averages) -> Tensor:
    """(M,) the weights of tokens that another program or earlier weights drew; their mean, and how many are at the cap,
    is counted.

    Args:
        old: (M,) logprobs of the policy before its updates, in the trainer.
        experience, rows: see `token_losses`.
        cap: of a weight.
        averages: where they are counted.
    """
    (drawn,) = experience.take(rows, "sampler_logprobs")
    weights = policy.importance_weights(old, drawn, cap)
    averages.add("train/importance_weight", weights)
    averages.add("train/importance_capped", weights >= cap)
    return weights
