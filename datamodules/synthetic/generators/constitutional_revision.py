"""Constitutional revision: a model criticises its own response by a principle, and rewrites it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.errors import DataError
from datamodules.synthetic.engine import Reply
from datamodules.synthetic.generators.base import (
    Draft,
    Dropped,
    RecordGenerator,
    Steps,
    check_template,
    fill,
    finished,
)
from datamodules.synthetic.seeds import Seeds

CRITIQUE = """\
Judge your last response by this principle:

{principle}

Say where the response falls short of it, and why. Write the criticism alone; the response is rewritten later."""

REVISION = """\
Rewrite that response, so that what you criticised is mended and the request is still answered. Write the new response \
alone, without a word about the change."""

PREAMBLE = re.compile(
    r"[^\n:]{0,80}\b(?:revised|rewritten)\b[^\n:]{0,30}\b(?:response|answer|reply|version)\b[^\n:]{0,30}:\s*",
    re.IGNORECASE,
)


@dataclass
class Constitution:
    """The principles by which responses are criticised.

    Args:
        criteria: what makes a response good, each in a sentence or two, as the `rubric.criteria` of a judge: one file
            serves both.
    """

    criteria: Sequence[str]


class ConstitutionalRevision(RecordGenerator):
    """Lets a model answer a prompt, criticise its answer by a principle of a constitution, and write it anew: the
    supervised stage of constitutional AI (Bai et al., arXiv:2212.08073).

    A record is the prompt with the revised response. Each of several rounds criticises what the one before wrote, by
    another principle; its conversation holds that response alone, so that it does not grow. A record of which any step
    is empty or cut off is dropped, and counted by the step.

    Args:
        constitution: the principles; for each record they are drawn anew by `seed`, none twice before all were taken.
        rounds: of criticism and revision. The paper took four; most of what they mend the first one does.
        pairs: make preference pairs of the revised and the first response, for a `PreferenceDataModule`. Where both are
            equal there is no pair.
        path: a file of prompts, in the shapes of `PromptDataModule`. None: what the training records ask.
        critique: how criticism is asked for; `{principle}` stands for the principle.
        revision: how the new response is; `{principle}` may stand in it, too.
        kwargs: see `RecordGenerator`; `num_shots` has no use here.

    Raises:
        DataError: there are no principles, or no rounds.
    """

    def __init__(
        self,
        constitution: Constitution,
        rounds: int = 1,
        pairs: bool = False,
        path: str | None = None,
        critique: str = CRITIQUE,
        revision: str = REVISION,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        principles = constitution.criteria
        if isinstance(principles, str) or not principles or not all(str(each).strip() for each in principles):
            raise DataError(
                f"generators: {type(self).__name__}.constitution.criteria must be a list of sentences that say what "
                "makes a response good"
            )
        if rounds < 1:
            raise DataError(f"generators: {type(self).__name__}.rounds must be at least 1")
        self.constitution = constitution
        self.rounds = rounds
        self.pairs = pairs
        self.path = path
        self.critique = check_template(self, critique, "principle")
        self.revision = revision

    def makes_pairs(self, seeds_are_pairs: bool) -> bool:
        """By the setting: what the seeds are does not matter to a response that is written anew."""
        return self.pairs

    def steps(self, number: int, seeds: Seeds) -> Steps:
        """Ask for a response, then in each round for criticism and for the response anew."""
        seed = self.seed_of(number, seeds)
        [reply] = yield [self.ask(seed.prompt, number, 0)]
        first = response = _text(reply, "response")
        for turn, principle in zip(range(self.rounds), self._principles(number), strict=False):
            said = [*seed.prompt, {"role": "assistant", "content": response}]
            said.append({"role": "user", "content": fill(self.critique, principle=principle)})
            [reply] = yield [self.ask(said, number, 2 * turn + 1)]
            said.append({"role": "assistant", "content": _text(reply, "criticism")})
            said.append({"role": "user", "content": fill(self.revision, principle=principle)})
            [reply] = yield [self.ask(said, number, 2 * turn + 2)]
            response = without_preamble(_text(reply, "revision"))
        if self.pairs and response == first:
            raise Dropped("the revision is the first response")
        messages = [*seed.prompt, {"role": "assistant", "content": response}]
        return [Draft(messages, (seed,), rejected=first if self.pairs else None)]

    def _principles(self, number: int) -> Iterator[str]:
        """Without end: each once in an order of its own, then all again in another."""
        random = np.random.default_rng([self.seed, number])
        while True:
            for place in random.permutation(len(self.constitution.criteria)):
                yield self.constitution.criteria[int(place)]


def without_preamble(text: str) -> str:
    """A revision without a first line that only announces it ("Here is the revised response:")."""
    return text[found.end() :] if (found := PREAMBLE.match(text)) and found.end() < len(text) else text


def _text(reply: Reply, step: str) -> str:
    try:
        return finished(reply)
    except Dropped as dropped:
        raise Dropped(f"{step}: {dropped}") from dropped
