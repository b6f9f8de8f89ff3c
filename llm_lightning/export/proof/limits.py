"""How far an export may be from the model that was trained."""

from dataclasses import dataclass, replace

from llm_lightning.errors import UserError


@dataclass(frozen=True)
class Limits:
    """What refuses an export where it is passed. Token ids and rendered chats must be equal, whatever the format.

    Args:
        max_kl: of the mean Kullback-Leibler divergence of the next token, in nats.
        max_perplexity_increase: on the text, as a share of the trained model's perplexity.
        max_reward_difference: the largest of a reward model, as a share of the standard deviation of the rewards.
    """

    max_kl: float
    max_perplexity_increase: float
    max_reward_difference: float

    def with_given(self, max_kl: float | None, max_perplexity_increase: float | None) -> "Limits":
        """With what a user gave in the place of the defaults; `UserError` for a negative one."""
        given = {"max_kl": max_kl, "max_perplexity_increase": max_perplexity_increase}
        for name, value in given.items():
            if value is not None and not value >= 0:
                raise UserError(f"--{name} {value} must be at least 0.")
        return replace(self, **{name: value for name, value in given.items() if value is not None})


# Some ten times what rounding to the format was seen to cost, far below what a fault costs: swapping two weights of one
# of SmolLM2-135M's thirty layers is a KL above 0.1.
EXACT = Limits(max_kl=1e-6, max_perplexity_increase=1e-4, max_reward_difference=1e-3)
HALF = Limits(max_kl=0.005, max_perplexity_increase=0.01, max_reward_difference=0.1)
EIGHT_BITS = Limits(max_kl=0.02, max_perplexity_increase=0.02, max_reward_difference=0.25)
# Activations in eight bits, one scale for all of a text, cost a network with outliers far more than its weights do.
EIGHT_BIT_ACTIVATIONS = Limits(max_kl=0.1, max_perplexity_increase=0.05, max_reward_difference=0.5)
# Four bits cost small models more than their users expect: that is refused until they say otherwise.
FOUR_BITS = Limits(max_kl=0.5, max_perplexity_increase=0.2, max_reward_difference=1.0)
