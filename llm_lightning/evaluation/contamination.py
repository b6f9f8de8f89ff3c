"""Items that stand in the training data: which ones, and how good the model is at the others."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from llm_lightning.measuring.ranks import EvaluationRanks


class TrainingTexts(Protocol):
    """All texts that a model was trained on."""

    def contaminated(self, items: Sequence[Sequence[str]], rank: int = 0, num_ranks: int = 1) -> list[bool | None]:
        """For each item, which is given by its texts, whether it stands in this rank's share of them; None where that
        cannot be told.
        """
        ...


def look_for(
    items: Sequence[Sequence[str]], texts: Sequence[TrainingTexts], ranks: EvaluationRanks
) -> list[bool | None]:
    """Which items stand in any of the texts; every rank calls it, reads its share, and has the whole answer.

    Args:
        items: of each item, its texts.
        texts: the training data, at least one.
        ranks: that share the work.
    """
    own = [each.contaminated(items, ranks.rank, ranks.count) for each in texts]
    found = [flags for gathered in ranks.gather(own) for flags in gathered]
    return [None if flags[0] is None else any(flags) for flags in zip(*found, strict=True)]


def look_for_docs(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], texts: Sequence[TrainingTexts], ranks: EvaluationRanks
) -> dict[str, dict[int, bool | None]]:
    """The same for the items of tasks, by task and number of the item.

    Args:
        samples: by task, what lm-eval logs: the texts of an item are those of its row, and not how it is put.
        texts, ranks: see `look_for`.
    """
    docs = {(name, one["doc_id"]): one["doc"] for name, each in samples.items() for one in each}
    flags = look_for([list(texts_in(doc)) for doc in docs.values()], texts, ranks)
    found: dict[str, dict[int, bool | None]] = {name: {} for name in samples}
    for (name, number), flag in zip(docs, flags, strict=True):
        found[name][number] = flag
    return found


def counted(flags: Collection[bool | None] | None) -> dict[str, int | None]:
    """What `results.json` says of a task's items: how many are contaminated, and how many too short to tell.

    Args:
        flags: of each item; None where nobody has looked.
    """
    if flags is None:
        return {"contaminated": None, "too_short": None}
    return {"contaminated": sum(flag is True for flag in flags), "too_short": sum(flag is None for flag in flags)}


def clean_score(
    flags: Sequence[bool | None] | None, score: Callable[[list[int]], tuple[float, float, float]]
) -> dict[str, Any] | None:
    """The score of the items that are not contaminated; None where all are, or none.

    Args:
        flags: of each item; None where nobody has looked.
        score: of some items, by their places: the value and its interval.
    """
    kept = [place for place, flag in enumerate(flags or ()) if flag is not True]
    if not kept or len(kept) == len(flags or ()):
        return None
    return dict(zip(("value", "low", "high"), score(kept), strict=True)) | {"num_items": len(kept)}


def texts_in(value: Any) -> Iterator[str]:
    """Every text in an item, however deep it lies; not the names of its columns."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from texts_in(one)
