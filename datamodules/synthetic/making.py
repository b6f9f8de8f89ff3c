"""Takes many records through their steps at once: all that they ask next goes to the engine together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

from datamodules.cache import key_of
from datamodules.records.record_source import Writer
from datamodules.synthetic.candidate import Candidate, Provenance
from datamodules.synthetic.engine import Engine, Reply, Request
from datamodules.synthetic.generators.base import Draft, Dropped, RecordGenerator, Steps
from datamodules.synthetic.seeds import Seeds


@dataclass
class Made:
    """What came of some records.

    Args:
        candidates: in the order of the records' numbers.
        dropped: how many records came to nothing, by the reason.
        num_failed: records that the engine gave up a call of; they can be made another time.
        num_tokens: of all replies.
    """

    candidates: list[Candidate] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    num_failed: int = 0
    num_tokens: int = 0


class Making:
    """Some records of one generator.

    Args:
        name: of the generator in the configuration.
        generator: says how each record comes about.
        numbers: of the records.
        seeds: what they begin with.
        engine: writes the texts.
        writer: what is made of the records, which refuses some (special tokens, control characters).
        on_reply: called with the tokens of each reply.
    """

    def __init__(
        self,
        name: str,
        generator: RecordGenerator,
        numbers: Sequence[int],
        seeds: Seeds,
        engine: Engine,
        writer: Writer,
        on_reply: Callable[[int], object],
    ) -> None:
        self.name = name
        self.generator = generator
        self.engine = engine
        self.writer = writer
        self.on_reply = on_reply
        self.made = Made()
        self._steps: dict[int, Steps] = {number: generator.steps(number, seeds) for number in numbers}
        self._asked: dict[int, list[Request]] = {number: [] for number in numbers}
        self._drafts: dict[int, list[Draft]] = {}

    def run(self) -> Made:
        """Rounds of requests and replies until no record asks any more."""
        inbox: dict[int, Sequence[Reply] | None] = dict.fromkeys(self._steps)
        while inbox:
            asking = {number: requests for number, sent in inbox.items() if (requests := self._advance(number, sent))}
            inbox = dict(self._replies(asking))
        self._finish()
        return self.made

    def _advance(self, number: int, replies: Sequence[Reply] | None) -> Sequence[Request]:
        """Sends a record its replies; returns what it asks next, nothing where it is at its end."""
        steps = self._steps[number]
        try:
            requests = next(steps) if replies is None else steps.send(replies)
        except StopIteration as stop:
            self._drafts[number] = stop.value
            return []
        except Dropped as dropped:
            self.made.dropped[str(dropped)] += 1
            return []
        self._asked[number] += requests
        return requests

    def _replies(self, asking: dict[int, Sequence[Request]]) -> Iterator[tuple[int, Sequence[Reply]]]:
        """To each record its replies, if it has them all."""
        requests = [request for some in asking.values() for request in some]
        replies: list[Reply | None] = [None] * len(requests)
        for place, reply in self.engine.write(requests):
            replies[place] = reply
            self.made.num_tokens += reply.num_tokens
            self.on_reply(reply.num_tokens)
        end = 0
        for number, some in asking.items():
            start, end = end, end + len(some)
            own = [reply for reply in replies[start:end] if reply is not None]
            if len(own) == len(some):
                yield number, own
            else:
                self.made.num_failed += 1

    def _finish(self) -> None:
        numbers = [number for number in sorted(self._drafts) for _ in self._drafts[number]]
        places = [place for number in sorted(self._drafts) for place in range(len(self._drafts[number]))]
        kept, dropped = self.generator.finish([d for number in sorted(self._drafts) for d in self._drafts[number]])
        self.made.dropped.update(dropped)
        for number, place, draft in zip(numbers, places, kept, strict=True):
            if draft is None:
                continue
            if self.writer.refuses(draft.messages, draft.rejected) is None:
                self.made.candidates.append(self._candidate(draft, self._asked[number], place))
            else:
                self.made.dropped["cannot be learned from"] += 1

    def _candidate(self, draft: Draft, asked: list[Request], place: int) -> Candidate:
        shown = ("\n".join(f"[{m['role']}] {m['content']}" for m in request.messages) for request in asked)
        parameters = {"temperature": asked[0].temperature, "top_p": asked[0].top_p, "seed": asked[0].seed}
        provenance = Provenance(
            generator=self.name,
            seed_ids=tuple(seed.id for seed in draft.seeds),
            model=self.engine.model,
            prompt="\n\n".join(dict.fromkeys(shown)),
            parameters=parameters | {"max_new_tokens": asked[0].max_new_tokens},
        )
        return Candidate(
            id=key_of(self.engine.model, [asdict(request) for request in asked], place),
            messages=draft.messages,
            provenance=provenance,
            rejected=draft.rejected,
            label=draft.label,
            scores=draft.scores,
        )
