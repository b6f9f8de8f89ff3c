"""What generators and judges ask of whatever writes their texts: a model in this process, or an endpoint."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from datamodules.synthetic.candidate import Message


@dataclass(frozen=True)
class Request:
    """One text to be written.

    Args:
        messages: the conversation so far; it ends with the user.
        seed: names the random numbers: the same request gives the same text from a local model, whatever else is
            written beside it.
        temperature: 0 takes the most probable token.
        top_p: share of the probability that tokens are drawn from.
        max_new_tokens: length of the text, at most.
    """

    messages: tuple[Message, ...]
    seed: int
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 512


@dataclass(frozen=True)
class Reply:
    """One text that was written.

    Args:
        text: without special tokens.
        num_tokens: how many tokens it has.
        is_finished: whether the model ended it, and not its length.
    """

    text: str
    num_tokens: int
    is_finished: bool


class Engine(ABC):
    """Writes texts."""

    @property
    @abstractmethod
    def model(self) -> str:
        """Names the model in caches and provenance: other weights, another name."""

    @abstractmethod
    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """The texts as they are done, each with its request's place, so that each can be kept at once.

        A request that had to be given up has no reply.
        """

    @abstractmethod
    def perplexities(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Of each conversation's last message, given those before it.

        Raises:
            DataError: the engine cannot say; endpoints seldom can.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What is written into reports; no secrets."""

    @abstractmethod
    def release(self) -> None:
        """Give back the memory of the model, which is read again when it is needed."""

    def check(self) -> None:  # noqa: B027 (most engines have nothing to look at)
        """Raise `DataError` for settings that cannot work, before anything long begins."""
