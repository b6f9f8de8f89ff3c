"""What generators and judges ask of whatever writes their texts: a model in this process, or an endpoint."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

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
        num_prompt_tokens: how many tokens it was written to, where the engine counts them.
    """

    text: str
    num_tokens: int
    is_finished: bool
    num_prompt_tokens: int = 0


class WrittenText(Protocol):
    """What is asked of an engine's texts; `Reply` is one, and an engine may have a class of its own."""

    @property
    def text(self) -> str:
        """The text, without special tokens."""
        ...

    @property
    def num_tokens(self) -> int:
        """How many tokens it has."""
        ...

    @property
    def is_finished(self) -> bool:
        """Whether the model ended it, and not its length."""
        ...


# By a type variable: jsonargparse takes any class for it, and mypy compares it with what is asked above. So it is with
# `Any` below: to jsonargparse the None of one file is not that of another with postponed annotations.
Text = TypeVar("Text", bound=WrittenText, covariant=True)


class Engine(Protocol[Text]):
    """Writes texts. Whatever has these methods is one; it need not know this class."""

    @property
    def model(self) -> str:
        """Names the model in caches and provenance: other weights, another name."""
        ...

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Text]]:
        """The texts as they are done, each with its request's place, so that each can be kept at once.

        A request that had to be given up has no text.
        """
        ...

    def perplexities(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Of each conversation's last message, given those before it.

        Raises:
            DataError: the engine cannot say; endpoints seldom can.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """What is written into reports; no secrets."""
        ...

    def release(self) -> Any:
        """Give back the memory of the model, which is read again when it is needed."""
        ...

    def check(self) -> Any:
        """Raise `DataError`, or another error that is a user's, for settings that cannot work, before anything long
        begins.
        """
        ...
