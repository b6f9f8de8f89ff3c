"""Records that give away what validation or test will ask."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain

from datamodules.filters.extra import needs
from datamodules.records.words import Coder, runs
from datamodules.synthetic.candidate import Candidate, Message
from datamodules.synthetic.filters.filter import Context, Filter, Scores, Threshold
from datamodules.synthetic.filters.nearest import Nearest
from datamodules.synthetic.filters.seed_similarity import prompt_of

RUN = 8  # words; the shortest runs that people hardly ever write by chance
STEP = 4
"""Most records share nothing with a held-out message. A fourth of their runs is enough to see that, since who has more
than 3/11 of a message's runs has four in a row."""


class Decontamination(Filter):
    """Drops records that contain a text of the validation or test data, or whose prompt is nearly one of theirs.

    The score is the share of a held-out message's runs of eight words that a record has (as Lambert et al., "Tulu 3",
    2024), the highest of all held-out messages; shorter messages have no such run. A prompt that is nearly a held-out
    one, by ROUGE-L, scores that.

    Args:
        threshold: by default, drop what has more than half of a held-out message.
        near: ROUGE-L to a held-out prompt from which a prompt counts as nearly that.

    Raises:
        DataError: rapidfuzz is not installed.
    """

    name = "contamination"

    def __init__(self, threshold: Threshold = Threshold(max=0.5), near: float = 0.75) -> None:  # noqa: B008
        super().__init__(threshold)
        needs("rapidfuzz", "Decontamination")
        self.near = near

    def scores(self, batches: Iterator[list[Candidate]], context: Context) -> Iterator[Scores]:
        """One number a record: how much of a held-out text it has."""
        coder = Coder()
        held_out = HeldOut(coder, context.held_out())
        for batch in batches:
            yield Scores.of(self._finding(held_out, coder, candidate) for candidate in batch)

    def _finding(self, held_out: "HeldOut", coder: Coder, candidate: Candidate) -> tuple[float, str]:
        prompt = coder.code(candidate.prompt)
        rest = [message["content"] for message in candidate.messages if message["role"] != "user"]
        contained = held_out.contained(prompt + coder.code("\n".join([*rest, candidate.rejected or ""])))
        near = held_out.prompts.rouge_l(prompt)
        if near >= max(self.near, contained):
            return near, "nearly a held-out prompt"
        return contained, "contains a held-out text" if contained else ""


class HeldOut:
    """The messages of validation and test, by their runs of words.

    Args:
        coder: learns their words.
        conversations: all of them.
    """

    def __init__(self, coder: Coder, conversations: Iterator[list[Message]]) -> None:
        self.sizes: list[int] = []
        self.owners: dict[str, list[int]] = {}
        prompts = []
        for messages in conversations:
            prompts.append(coder.learn(prompt_of(messages)))
            for message in messages:
                if message["role"] in ("user", "assistant"):
                    pieces = runs(coder.learn(message["content"]), RUN)
                    for piece in pieces:
                        self.owners.setdefault(piece, []).append(len(self.sizes))
                    self.sizes.append(len(pieces))
        self.prompts = Nearest(prompts)

    def contained(self, text: str) -> float:
        """The highest share of a message's runs that the text has; shares up to 3/11 may be found to be 0.

        Args:
            text: coded.
        """
        if self.owners.keys().isdisjoint(runs(text, RUN, STEP)):
            return 0.0
        owners = filter(None, map(self.owners.get, runs(text, RUN)))
        found = Counter(chain.from_iterable(owners))
        return max((count / self.sizes[number] for number, count in found.items()), default=0.0)
