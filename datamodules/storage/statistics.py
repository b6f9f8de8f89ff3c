"""What became of the text, in numbers and in words."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from datamodules.errors import DataError
from datamodules.records.own_keys import unread_in_words
from datamodules.sources.discover import Source
from datamodules.storage.rows import RowIndex
from datamodules.storage.shards import Shard


def statistics_of(sources: Sequence[tuple[RowIndex, Sequence[Shard]]], seq_len: int) -> dict[str, float]:
    """Sums of `RowIndex.statistics` over the sources, and: `padded_share` of all positions; `trained_share` of the
    tokens; `too_long_share` of the documents; `bytes_per_token` of the documents, UTF-8 bytes over tokens with their
    framing.
    """
    statistics = [index.statistics for index, _ in sources]
    total: dict[str, float] = {name: sum(each[name] for each in statistics) for name in statistics[0]}
    return total | {
        "padded_share": 1 - total["num_tokens"] / max(1, total["num_rows"] * seq_len),
        "trained_share": total["num_trained"] / max(1, total["num_tokens"]),
        "too_long_share": total["num_too_long"] / max(1, total["num_documents"]),
        "bytes_per_token": total["num_bytes"] / max(1, total["num_document_tokens"]),
    }


def left_out(shards: Iterable[Shard]) -> Counter[str]:
    """How many records were left out, by the reason."""
    total: Counter[str] = Counter()
    for shard in {shard.path: shard for shard in shards}.values():
        total.update(shard.statistics["left_out"])
    return total


def left_out_in_words(shards: Iterable[Shard]) -> Iterator[str]:
    """A line for each reason."""
    return (f"left out: {count:,} {reason}" for reason, count in sorted(left_out(shards).items()))


def notes_in_words(shards: Sequence[Shard]) -> Iterator[str]:
    """A line for each reason for which records were left out, and one for what was not read of the others."""
    yield from left_out_in_words(shards)
    unread: Counter[str] = Counter()
    for shard in {shard.path: shard for shard in shards}.values():
        unread.update(shard.statistics["unread"])
    yield from unread_in_words(unread)


def check_any(name: str, sources: Sequence[Source], shards: Sequence[Sequence[Shard]]) -> None:
    """Raises `DataError` where no document is left of a source, with what became of its records.

    Args:
        name: the setting that names the sources.
        shards: those of each source.
    """
    for source, made in zip(sources, shards, strict=True):
        if not any(shard.uses().any() for shard in made):
            reasons = [*left_out_in_words(made), *filter(None, [skipped_in_words(made), filtered_in_words(made)])]
            why = "; ".join(reasons) or "there is no text in it"
            raise DataError(f"{name}: there is nothing to train on in {source.path!r}: {why}")


def filtered_in_words(shards: Iterable[Shard]) -> str | None:
    """How many documents each filter took; None where there are no filters."""
    taken: Counter[str] = Counter()
    for shard in {shard.path: shard for shard in shards}.values():
        taken["duplicates"] += int((~shard.uses()).sum())
        for stage in shard.statistics.get("filtered", {}).get("stages", []):
            taken[stage["name"]] += stage["documents"]
    words = [f"{count:,} by {name}" for name, count in taken.items() if count]
    return f"taken out by filters: {', '.join(words)}" if words else None


def skipped_in_words(shards: Iterable[Shard]) -> str | None:
    """How many bad records were skipped, and the first of them; None where there were none."""
    bad = [
        shard.statistics for shard in {shard.path: shard for shard in shards}.values() if shard.statistics["num_bad"]
    ]
    if not bad:
        return None
    return f"{sum(each['num_bad'] for each in bad):,} bad records were skipped; the first: {bad[0]['first_bad']}"
