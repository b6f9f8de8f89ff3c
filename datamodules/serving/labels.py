"""How many answers are desirable, and how many are not: KTO learns from both."""

from collections.abc import Mapping, Sequence

from datamodules.encoding.pairs import PAIR
from datamodules.records.single_answers import DESIRABLE, UNDESIRABLE
from datamodules.storage.rows import Selection
from datamodules.storage.shards import Shard

COUNTS = ("num_desirable", "num_undesirable")


def count_singles(sources: Sequence[Sequence[Shard]], selection: Selection) -> dict[str, float]:
    """`COUNTS` of the selected single answers; nothing where there are no sources.

    Args:
        sources: the shards of each source of single answers.
        selection: which of their documents count.
    """
    if not sources:
        return {}
    desirable = total = 0
    for shard in (shard for shards in sources for shard in shards if shard.statistics["num_documents"]):
        details = shard.details(PAIR)[:][selection.mask(shard.documents()["hash"])]
        desirable += int((details["chosen"] > 0).sum())
        total += len(details)
    return dict(zip(COUNTS, (desirable, total - desirable), strict=True))


def labelled_answers(counts: Mapping[str, float]) -> tuple[int, int]:
    """How many answers are desirable and how many are not, of a DataModule's statistics: of a pair, one each."""
    desirable, undesirable = (int(counts.get(name, 0)) for name in COUNTS)
    num_pairs = int(counts.get("num_documents", 0)) - desirable - undesirable
    return num_pairs + desirable, num_pairs + undesirable


def documents_in_words(counts: Mapping[str, float]) -> str:
    """How many pairs there are, and how many single answers of each label."""
    singles = [counts.get(name, 0) for name in COUNTS]
    num_pairs = counts["num_documents"] - sum(singles)
    said = [f"{num_pairs:,} pairs"] if num_pairs or not sum(singles) else []
    if sum(singles):
        balance = " : ".join(f"{each:,} {name}" for each, name in zip(singles, (DESIRABLE, UNDESIRABLE), strict=True))
        said.append(f"{sum(singles):,} single answers ({balance})")
    return " and ".join(said)
