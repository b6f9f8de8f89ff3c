"""A generated record on its way from its generator through the filters to the training data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]
"""`role` and `content`, as chat templates take them."""

Scorer: TypeAlias = Callable[[list[Any], list[str], dict[str, list[Any]]], Sequence[float]]
"""From prompts (messages), completions and the records' columns to one number a completion, as rewards are."""


@dataclass(frozen=True)
class Provenance:
    """Where a record comes from; all of it is kept with the record.

    Args:
        generator: its name in the configuration.
        seed_ids: ids of the real records that it was made from.
        model: which model wrote it: the hash of a local model's weights, or an endpoint's model name.
        prompt: what the model was asked.
        parameters: how its tokens were drawn.
    """

    generator: str
    seed_ids: tuple[str, ...] = ()
    model: str = ""
    prompt: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """One generated record.

    Args:
        id: hash of what was asked and of which response it is: the same in every run and on every rank.
        messages: the conversation; the last message is the assistant's, and alone in the loss.
        provenance: where it comes from.
        rejected: of a preference pair, the response that is not preferred; the last message holds the preferred one.
        label: the class that it was written for, where the generator balances classes.
        scores: what generators and filters measured, by name; filters add theirs.
    """

    id: str
    messages: list[Message]
    provenance: Provenance
    rejected: str | None = None
    label: str | None = None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """What the user says, all turns."""
        return "\n".join(message["content"] for message in self.messages if message["role"] == "user")

    @property
    def answer(self) -> str:
        """The assistant's last message."""
        return str(self.messages[-1]["content"])

    @property
    def text(self) -> str:
        """All that was said, the rejected response included."""
        rejected = [] if self.rejected is None else [self.rejected]
        return "\n".join([*(str(message["content"]) for message in self.messages), *rejected])
