"""What an evaluation needs to know of a way to answer that takes more than one greedy text."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from llm_lightning.models.adapters.dynamic import Adaptation
from llm_lightning.rollouts.sampling import Sampling
from llm_lightning.rollouts.thinking import Thinking


class Strategy(Protocol):
    """Many samples of an answer and a choice among them, thoughts before it, or both; learning from texts that are
    read.
    """

    @property
    def num_samples(self) -> int:
        """Texts that are written to each prompt."""
        ...

    @property
    def thinking(self) -> Thinking | None:
        """How long the model thinks before it answers."""
        ...

    @property
    def adaptation(self) -> Adaptation | None:
        """How the network learns from a text whose likelihood is asked for."""
        ...

    def drawn(self, sampling: Sampling) -> Sampling:
        """How the texts are drawn, given how the task draws its own."""
        ...

    def choose(
        self, prompts: Sequence[Any], texts: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        """For each prompt the place of the text that is the answer.

        Args:
            prompts: a text each, or the messages of a conversation.
            texts: the samples of each, thoughts left out.
            docs: what the task has of each item.
        """
        ...

    def as_settings(self) -> dict[str, Any]:
        """What is written into results."""
        ...
