"""What is thought of several samples, and which one is taken for the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.inference.choices import Choice, MajorityVote
from llm_lightning.rewards import Reward, check_function


@dataclass(frozen=True)
class Judging:
    """What is thought of the answers.

    Args:
        rewards: by name.
        choices: by name; the first one says which sample is the answer.
    """

    rewards: Mapping[str, Reward]
    choices: Mapping[str, Choice]

    def check(self) -> None:
        """Raise `UserError` where there is nothing to choose by, or a reward finds a mistake in its settings."""
        if not self.choices:
            raise UserError("--choices: there is none; leave it out to take the first sample.")
        for name, choice in self.choices.items():
            if choice.needs_rewards and not any(reward.weight for reward in self.rewards.values()):
                raise UserError(
                    f"--choices.{name} ({type(choice).__name__}) chooses by rewards, and there is none to choose by: "
                    "name one in --rewards, which is not the --truth and has a weight."
                )
        for reward in self.rewards.values():
            check_function(reward.function)

    def check_readers(self, texts: Sequence[str]) -> None:
        """Raise `UserError` where a choice finds no answer in any of these."""
        for name, choice in self.choices.items():
            if not isinstance(choice, MajorityVote) or not texts or any(choice.answer(text) for text in texts):
                continue
            raise UserError(
                f"--choices.{name}.answer ({type(choice.answer).__name__}) finds nothing in any of the first "
                f"{len(texts)} answers, such as {shorten(repr(texts[0]), 200)}: mend it, or ask otherwise. What was "
                "written is kept."
            )

    def choose(self, texts: Sequence[str], given: Mapping[str, Sequence[float]]) -> int:
        """The place of the sample that is the answer.

        Args:
            texts: the samples of one prompt, at least one.
            given: by the name of a reward, what each has got.
        """
        return next(iter(self.choices.values())).choose(texts, self.totals(given, len(texts)))

    def totals(self, given: Mapping[str, Sequence[float]], count: int) -> list[float]:
        """The weighted sums of the rewards."""
        return [
            sum(reward.weight * given[name][place] for name, reward in self.rewards.items()) for place in range(count)
        ]


def as_rewards_see_it(messages: list[dict[str, Any]]) -> Any:
    """A lone question as a text, else the messages: as rewards see prompts in training."""
    return messages[0]["content"] if len(messages) == 1 and messages[0]["role"] == "user" else messages
