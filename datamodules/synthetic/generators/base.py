"""What generators share: how a record comes about step by step, and which real records it begins with."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from datamodules.cache import key_of
from datamodules.errors import DataError
from datamodules.serving.orders.order import permute
from datamodules.synthetic.candidate import Message
from datamodules.synthetic.engine import Reply, Request
from datamodules.synthetic.seeds import Seed, Seeds


@dataclass(frozen=True)
class Draft:
    """What a generator made of its replies; the rest of a `Candidate` is the same for all generators.

    Args:
        messages: the conversation, the response last.
        seeds: the real records that it was made from.
        rejected, label, scores: as of a `Candidate`.
    """

    messages: list[Message]
    seeds: tuple[Seed, ...]
    rejected: str | None = None
    label: str | None = None
    scores: dict[str, float] = field(default_factory=dict)


Steps: TypeAlias = Generator[Sequence[Request], Sequence[Reply], list[Draft]]
"""A record on its way: yields what is to be asked next, is sent the replies, and returns what came of them."""


class Dropped(Exception):  # noqa: N818 (a record's end, not a fault)
    """Nothing comes of a record; the message says why, in words that are counted."""


class RecordGenerator(ABC):
    """Makes records of real ones, each by itself: any process can make any of them, in any order.

    Args:
        count: records to begin, some of which come to nothing. None: one for each real record.
        num_shots: real training records that are shown as examples, drawn for each record anew; 0 for none.
        temperature, top_p, max_new_tokens: see `Request`.
        seed: names the examples and the random numbers.
    """

    path: str | None = None
    """Prompts of its own to begin with, instead of the training records."""

    def __init__(
        self,
        count: int | None = None,
        num_shots: int = 0,
        temperature: float = 0.8,
        top_p: float = 0.95,
        max_new_tokens: int = 512,
        seed: int = 0,
    ) -> None:
        for name, valid, words in (
            ("count", count is None or count >= 1, "at least 1"),
            ("num_shots", num_shots >= 0, "at least 0"),
            ("temperature", temperature >= 0, "at least 0"),
            ("top_p", 0 < top_p <= 1, "above 0 and at most 1"),
            ("max_new_tokens", max_new_tokens >= 1, "at least 1"),
        ):
            if not valid:
                raise DataError(f"generators: {type(self).__name__}.{name} must be {words}")
        self.count = count
        self.num_shots = num_shots
        self.temperature = temperature
        self.top_p = top_p
        self.max_new_tokens = max_new_tokens
        self.seed = seed

    def num_tasks(self, seeds: Seeds) -> int:
        """How many records are begun."""
        return len(seeds) if self.count is None else self.count

    def check_seeds(self, seeds: Seeds) -> None:  # noqa: B027 (most have nothing to look at)
        """Raise `DataError` for real records that nothing can come of, before a model is asked for any."""

    @abstractmethod
    def steps(self, number: int, seeds: Seeds) -> Steps:
        """How record `number` comes about; raises `Dropped` where it does not."""

    def finish(self, drafts: list[Draft]) -> tuple[list[Draft | None], Counter[str]]:
        """What is decided for many records at once: those that stay, None for the others, and why."""
        return list(drafts), Counter()

    def makes_pairs(self, seeds_are_pairs: bool) -> bool:
        """Whether the records have a rejected response."""
        return False

    def ask(self, messages: str | list[Message], number: int, step: int, **changes: Any) -> Request:
        """A request with the random numbers of this record's step.

        Args:
            messages: a conversation, or what the user says.
            changes: fields of the request that are otherwise than the generator's.
        """
        said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        seed = int(key_of(type(self).__name__, self.seed, number, step)[:12], 16)
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "max_new_tokens": self.max_new_tokens}
        return Request(tuple(said), seed, **(drawn | changes))

    def seed_of(self, number: int, seeds: Seeds) -> Seed:
        """The real record that record `number` begins with: each once, in an order that `seed` names, then again."""
        turn, place = divmod(number, len(seeds))
        return seeds[int(permute(np.array([place]), len(seeds), self.seed, turn)[0])]

    def shots(self, number: int, seeds: Seeds, without: str | None = None) -> list[Seed]:
        """The examples of record `number`, without the real record of the id `without`."""
        if not self.num_shots:
            return []
        random = np.random.default_rng([self.seed, number])
        chosen = random.choice(len(seeds), min(self.num_shots + 1, len(seeds)), replace=False)
        return [seed for seed in (seeds[int(place)] for place in chosen) if seed.id != without][: self.num_shots]


def fill(template: str, **texts: str) -> str:
    """The template with a text for each `{name}`; other braces, in the template or in a text, stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda found: texts.get(found[1], found[0]), template)


def check_template(generator: RecordGenerator, template: str, *names: str) -> str:
    """The template; raises `DataError` where it has no place for what a record says."""
    if missing := [name for name in names if f"{{{name}}}" not in template]:
        raise DataError(f"generators: a template of {type(generator).__name__} has no place for {{{missing[0]}}}")
    return template


def finished(reply: Reply) -> str:
    """The reply's text; raises `Dropped` where it is empty, or cut off: that would teach to stop anywhere."""
    if not reply.is_finished:
        raise Dropped("cut off at max_new_tokens")
    if not reply.text.strip():
        raise Dropped("empty reply")
    return reply.text.strip()


def turns(seed: Seed) -> list[Message]:
    """A real record as an example: the user's last question and the response to it."""
    return [{"role": "user", "content": seed.question}, {"role": "assistant", "content": seed.answer}]


def with_question(messages: list[Message], question: str) -> list[Message]:
    """The conversation with another last question of the user's."""
    last = max(place for place, message in enumerate(messages) if message["role"] == "user")
    return [*messages[:last], {"role": "user", "content": question}, *messages[last + 1 :]]
