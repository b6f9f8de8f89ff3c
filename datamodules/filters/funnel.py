"""What the filters took: documents and characters, the reasons, and some examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from datamodules.storage.hashing import text_hash

NUM_EXAMPLES = 4  # of each filter
SHOWN = 400  # characters of a text


@dataclass
class Stage:
    """What one filter took.

    Args:
        name: of the filter, with a number where there are several of one name.
        documents: how many.
        characters: of these.
        reasons: documents by the reason.
        examples: some of them; those whose hashes are the smallest, which is a random choice and always the same one.
    """

    name: str
    documents: int = 0
    characters: int = 0
    reasons: dict[str, int] = field(default_factory=dict)  # `asdict` breaks a Counter
    examples: list[dict[str, Any]] = field(default_factory=list)

    def take(self, text: str, reason: str) -> None:
        """Counts a document."""
        self.documents += 1
        self.characters += len(text)
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        key = text_hash(text.encode())
        if len(self.examples) < NUM_EXAMPLES or key < self.examples[-1]["hash"]:
            example = {"reason": reason, "characters": len(text), "text": shown(text), "hash": key}
            self._choose([*self.examples, example])

    def add(self, other: dict[str, Any]) -> None:
        """Adds what it took elsewhere."""
        self.documents += other["documents"]
        self.characters += other["characters"]
        self.reasons = dict(Counter(self.reasons) + Counter(other["reasons"]))
        self._choose([*self.examples, *other["examples"]])

    def _choose(self, examples: list[dict[str, Any]]) -> None:
        self.examples = sorted(examples, key=lambda example: example["hash"])[:NUM_EXAMPLES]


@dataclass
class Funnel:
    """What became of documents on their way through the filters.

    Args:
        documents: that were read.
        characters: of these.
        stages: of the filters, in their order.
    """

    stages: list[Stage]
    documents: int = 0
    characters: int = 0

    @classmethod
    def of(cls, names: Sequence[str]) -> Funnel:
        """An empty one; the second of a name is called NAME_2."""
        seen: Counter[str] = Counter(names)
        counts: Counter[str] = Counter()
        stages = []
        for name in names:
            counts[name] += 1
            stages.append(Stage(name if seen[name] == 1 or counts[name] == 1 else f"{name}_{counts[name]}"))
        return cls(stages)

    def add(self, others: Iterable[dict[str, Any]]) -> None:
        """Adds other funnels of the same filters, as `as_json` gave them."""
        for other in others:
            self.documents += other["documents"]
            self.characters += other["characters"]
            for stage, more in zip(self.stages, other["stages"], strict=True):
                stage.add(more)

    def as_json(self) -> dict[str, Any]:
        """All of it, as JSON can write it."""
        return asdict(self)


def table(funnel: dict[str, Any]) -> list[str]:
    """Lines to print: what was read, what each filter left and why, and what stays.

    Args:
        funnel: as JSON.
    """
    left, characters = funnel["documents"], funnel["characters"]
    stages = funnel["stages"]
    width = max(len(stage["name"]) for stage in stages)
    lines = []
    for stage in stages:
        before, left, characters = left, left - stage["documents"], characters - stage["characters"]
        ordered = sorted(stage["reasons"].items(), key=lambda each: (-each[1], each[0]))
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in ordered)
        lines.append(f"  {stage['name']:{width}}  {before:>11,} -> {left:>11,}   {reasons}".rstrip())
    total, read = funnel["documents"], funnel["characters"]
    first = (
        f"Filters: {left:,} of {total:,} documents stay ({left / max(1, total):.1%}),"
        f" {characters:,} of {read:,} characters ({characters / max(1, read):.1%})"
    )
    return [first, *lines]


def shown(text: str) -> str:
    """As much of a text as an example shows."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} …"
