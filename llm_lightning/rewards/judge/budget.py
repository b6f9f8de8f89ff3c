"""What a judge may cost."""

from dataclasses import dataclass

from llm_lightning.errors import UserError

MILLION = 1_000_000


@dataclass
class Budget:
    """A bound on what verdicts cost, over all attempts of a run: those that its folder holds are counted.

    Args:
        calls: verdicts at most.
        money: what they may cost, in any currency, by the tokens that the endpoint counts.
        prompt_price, completion_price: of a million tokens, in the same currency.

    Both are looked at before each round of at most 64 calls, whose cost is not known before: money may be exceeded by
    that of one round.
    """

    calls: int | None = None
    money: float | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0

    def check(self) -> None:
        """Raise `UserError` for settings that bound nothing."""
        for name in ("calls", "money"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UserError(f"Judge.budget.{name}={value} must be above 0.")
        prices = self.prompt_price, self.completion_price
        if min(prices) < 0:
            raise UserError("Judge.budget: prompt_price and completion_price must not be negative.")
        if self.money is not None and not any(prices):
            raise UserError(
                f"Judge.budget.money={self.money} needs prices: give budget.prompt_price and budget.completion_price, "
                "what a million tokens cost."
            )

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Of so many tokens."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / MILLION

    def room(self, calls: int, money: float) -> int | None:
        """How many calls are left once so much is spent, None: any number.

        Raises:
            UserError: none is.
        """
        for name, spent, most in (("calls", calls, self.calls), ("money", money, self.money)):
            if most is not None and spent >= most:
                raise UserError(
                    f"Judge.budget.{name}={most:g}: {spent:g} are spent. All verdicts are kept: with a higher budget "
                    "the same command goes on, and pays for none of them again."
                )
        return None if self.calls is None else self.calls - calls
