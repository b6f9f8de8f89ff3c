"""What is asked of whatever writes verdicts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

TOKENS = 16
"""Of a verdict without reasons; enough for "Answer: Yes." and its like."""


# A type variable and `Any` where classes of the two packages that have engines differ: to jsonargparse these fit all.
Text = TypeVar("Text", covariant=True)


class JudgeEngine(Protocol[Text]):
    """Writes verdicts: `llm_lightning.rollouts.LocalEngine`, `datamodules.OpenAIEngine`, or a class of your own."""

    @property
    def model(self) -> str:
        """Names the model; another one, other verdicts."""
        ...

    def write(self, requests: Any) -> Iterator[tuple[int, Text]]:
        """Texts as they are done, each with its request's place; a request that was given up has none."""
        ...

    def settings(self) -> dict[str, Any]:
        """What is written into results; no secrets."""
        ...

    def release(self) -> Any:
        """Give back the memory of the model."""
        ...

    def check(self) -> Any:
        """Raise an error that is a user's for settings that cannot work."""
        ...


@dataclass(frozen=True)
class VerdictRequest:
    """What engines look at in a request; the likeliest tokens are taken, so that a verdict is always the same."""

    messages: tuple[dict[str, str], ...]
    seed: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = TOKENS
