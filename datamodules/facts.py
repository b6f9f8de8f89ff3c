"""What became of the text, in numbers and in words."""

from collections.abc import Iterable, Sequence

from datamodules.rows import RowIndex
from datamodules.shards import Shard


def facts_of(sources: Sequence[tuple[RowIndex, Sequence[Shard]]], seq_len: int) -> dict[str, float]:
    """Sums over the sources: `num_documents`, `num_tokens`, `num_rows`; `padded_share` of all positions; `cut_share`
    of the documents, those longer than a row; `bytes_per_token`, UTF-8 bytes of text over tokens with their framing.
    """
    facts = [index.facts for index, _ in sources]
    total = {name: sum(each[name] for each in facts) for name in facts[0]}
    return {
        "num_documents": total["num_documents"],
        "num_tokens": total["num_tokens"],
        "num_rows": total["num_rows"],
        "padded_share": 1 - total["num_tokens"] / max(1, total["num_rows"] * seq_len),
        "cut_share": total["num_cut"] / max(1, total["num_documents"]),
        "bytes_per_token": total["num_bytes"] / max(1, total["num_tokens"]),
    }


def in_words(facts: dict[str, float], seq_len: int) -> str:
    """The same as a line to read."""
    return (
        f"{facts['num_documents']:,} documents, {facts['num_tokens']:,} tokens"
        f" ({facts['bytes_per_token']:.2f} bytes each) in {facts['num_rows']:,} rows of {seq_len:,};"
        f" {facts['padded_share']:.2%} padded, nothing cropped,"
        f" {facts['cut_share']:.1%} of the documents longer than a row"
    )


def skipped_in_words(shards: Iterable[Shard]) -> str | None:
    """How many bad records were skipped, and the first of them; None where there were none."""
    bad = [shard.facts for shard in {shard.path: shard for shard in shards}.values() if shard.facts["num_bad"]]
    if not bad:
        return None
    return f"{sum(facts['num_bad'] for facts in bad):,} bad records were skipped; the first: {bad[0]['first_bad']}"
