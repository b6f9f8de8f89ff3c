"""The index of packed rows: which tokens make up each row. It lies on disk, however many rows there are."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from datamodules.cache import build_lock, key_of, remove_leftovers, room_on_disk, say_damaged
from datamodules.storage.file_array import FileArray, SummedFile
from datamodules.storage.held_out import held_out
from datamodules.storage.packing import WINDOW, best_fit
from datamodules.storage.shards import Shard
from llm_lightning_safety.files import atomic_folder
from llm_lightning_safety.seals import read_json, write_json

VERSION = 4

TooLong = Literal["drop", "left", "right", "split"]

STATISTICS = (
    "num_documents", "num_document_tokens", "num_bytes", "num_too_long", "num_dropped",
    "num_rows", "num_tokens", "num_trained",
)  # fmt: skip

# A run of tokens in the shards' tokens, counted through all shards: a document, or a part of one.
SPAN = np.dtype([("start", "<i8"), ("length", "<i8")])
# A whole document, and how many of its tokens stand before its last reply.
WHOLE = np.dtype([*SPAN.descr, ("prompt", "<i8")])


@dataclass(frozen=True)
class Selection:
    """The documents whose text hash lies in `low <= hash <= high`; none where `low > high`.

    Args:
        low, high: the bounds.
        exceptions: hashes that are on the other side.
    """

    low: int = 0
    high: int = 2**64 - 1
    exceptions: tuple[int, ...] = ()

    def mask(self, hashes: np.ndarray) -> np.ndarray:
        """(N,) bool for (N,) uint64."""
        if self.low > self.high:
            return np.zeros(len(hashes), bool)
        inside = (hashes >= np.uint64(self.low)) & (hashes <= np.uint64(self.high))
        return inside ^ np.isin(hashes, np.array(self.exceptions, np.uint64)) if self.exceptions else inside


def split_documents(shards: Sequence[Shard], share: float) -> tuple[Selection, Selection]:
    """Train and validation: the `share` of documents with the smallest text hashes validates, at least one.

    It is decided by the text alone, so a document stays on its side when others come and go, and copies of a text
    are never on both sides; see `held_out`.
    """
    count = sum(int(shard.uses().sum()) for shard in shards)
    point, exceptions = held_out((shard.hashes() for shard in shards), count, share)
    return Selection(low=point + 1, exceptions=exceptions), Selection(high=point, exceptions=exceptions)


def hashes_of(shards: Sequence[Shard], selection: Selection) -> tuple[int, ...]:
    """The hashes of the selected documents, each once and sorted."""
    hashes = [shard.hashes() for shard in shards]
    chosen = [np.unique(some[selection.mask(some)]) for some in hashes]
    return tuple(np.unique(np.concatenate(chosen)).tolist()) if chosen else ()


@dataclass(frozen=True)
class RowIndex:
    """Packed rows on disk: `spans` in the order of rows, `rows` (the first span of each, and the end)."""

    folder: Path

    @property
    def statistics(self) -> dict[str, int]:
        """Of the documents that were selected: `num_documents`, their `num_document_tokens` and `num_bytes` (UTF-8),
        `num_too_long` (longer than a row), and `num_dropped` (nothing of them is left). Of what lies in the rows:
        `num_rows`, `num_tokens`, and `num_trained` of these.
        """
        statistics = read_json(self.folder / "facts.json")
        return {name: statistics[name] for name in STATISTICS}

    def rows(self) -> FileArray:
        """(num_rows + 1,) int64: row i holds spans rows[i] to rows[i + 1]."""
        return FileArray(str(self.folder / "rows"), np.dtype("<i8"))

    def spans(self) -> FileArray:
        """The pieces that rows are made of, as `SPAN`."""
        return FileArray(str(self.folder / "spans"), SPAN)

    def documents(self) -> FileArray:
        """The whole documents, in the corpus's order, as `WHOLE`."""
        return FileArray(str(self.folder / "documents"), WHOLE)


def pack_rows(
    shards: Sequence[Shard],
    selection: Selection,
    seq_len: int,
    root: Path,
    too_long: TooLong = "split",
    room: int = 0,
) -> RowIndex:
    """The selected documents as packed rows of `seq_len` tokens, from the cache where they are there.

    Args:
        too_long: what becomes of a document longer than a row. `split`: it is cut into full rows and a rest, and every
            token is in exactly one row. `drop`: it is left out. `left` and `right`: its beginning or its end is cut
            off. A piece without a trained token is left out.
        room: tokens beside each piece that stay free.
    """
    names = [shard.name for shard in shards]
    key = key_of(VERSION, WINDOW, seq_len, too_long, asdict(selection), names, *([room] if room else []))
    folder = root / "rows" / key
    if not _is_intact(folder):
        with build_lock(folder.parent, "the packed rows of this data"):
            remove_leftovers(folder.parent)
            if not _is_intact(folder):
                say_damaged(folder, "packed rows")
                shutil.rmtree(folder, ignore_errors=True)
                with room_on_disk(root), atomic_folder(folder) as temporary:
                    write_rows(shards, selection, seq_len, too_long, room, temporary)
    return RowIndex(folder)


def _is_intact(folder: Path) -> bool:
    try:
        sizes = read_json(folder / "facts.json")["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def write_rows(
    shards: Sequence[Shard], selection: Selection, seq_len: int, too_long: TooLong, room: int, folder: Path
) -> None:
    """Packs the selected documents, and writes a `RowIndex` into a folder; see `pack_rows`."""
    longest = seq_len - room
    statistics = dict.fromkeys(STATISTICS, 0)
    num_spans = 0
    paths = [folder / name for name in ("documents", "spans", "rows")]
    with SummedFile(paths[0]) as documents_file, SummedFile(paths[1]) as spans_file, SummedFile(paths[2]) as rows_file:

        def add(spans: np.ndarray, counts: np.ndarray) -> None:
            """Appends rows: `counts` says how many of the spans each one holds."""
            nonlocal num_spans
            spans_file.write(spans.tobytes())
            rows_file.write((num_spans + np.cumsum(counts, dtype="<i8") - counts).astype("<i8").tobytes())
            num_spans += len(spans)
            statistics["num_tokens"] += int(spans["length"].sum())
            statistics["num_rows"] += len(counts)

        rests = np.empty(0, SPAN)
        for spans, documents, shard, base in _selected(shards, selection):
            documents_file.write(_whole(spans, documents).tobytes())
            pieces = _fit(spans, documents["trained"], longest, too_long, shard, base)
            statistics["num_documents"] += len(documents)
            statistics["num_document_tokens"] += int(spans["length"].sum())
            statistics["num_trained"] += pieces.num_trained
            statistics["num_bytes"] += int(documents["bytes"].sum())
            statistics["num_too_long"] += int((spans["length"] > longest).sum())
            statistics["num_dropped"] += pieces.num_dropped
            add(pieces.full, np.ones(len(pieces.full), np.int64))
            rests = np.concatenate([rests, pieces.rest])
            while len(rests) >= WINDOW:
                add(*_packed(rests[:WINDOW], seq_len, room))
                rests = rests[WINDOW:]
        add(*_packed(rests, seq_len, room))
        rows_file.write(np.array([num_spans], "<i8").tobytes())
    sizes = {path.name: path.stat().st_size for path in paths}
    write_json(folder / "facts.json", statistics | {"sizes": sizes})


def _selected(shards: Sequence[Shard], selection: Selection) -> Iterator[tuple[np.ndarray, np.ndarray, Shard, int]]:
    """For each shard its selected documents, as `SPAN` through all shards and as `DOCUMENT`, and its first token."""
    base = 0
    for shard in shards:
        documents = shard.documents()
        ends = documents["end"].astype(np.int64)
        spans = np.empty(len(ends), SPAN)
        spans["length"] = np.diff(ends, prepend=0)
        spans["start"] = base + ends - spans["length"]
        mask = selection.mask(documents["hash"]) & shard.uses()
        yield spans[mask], documents[mask], shard, base
        base += shard.statistics["num_tokens"]


def _whole(spans: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """`SPAN`s and their `DOCUMENT`s as `WHOLE`."""
    whole = np.empty(len(spans), WHOLE)
    whole["start"], whole["length"], whole["prompt"] = spans["start"], spans["length"], documents["prompt"]
    return whole


class _Pieces(NamedTuple):
    """Pieces that are a row by themselves, pieces to pack, the number of trained tokens in both, and documents lost."""

    full: np.ndarray
    rest: np.ndarray
    num_trained: int
    num_dropped: int


def _fit(spans: np.ndarray, trained: np.ndarray, seq_len: int, too_long: TooLong, shard: Shard, base: int) -> _Pieces:
    """The documents of a shard as pieces no longer than a row."""
    is_long = spans["length"] > seq_len
    long, whole = spans[is_long], spans[~is_long]
    full, rest = _cut(long, seq_len, too_long)
    num_trained = int(trained[~is_long].sum())
    kept = []
    for pieces in (full, rest):
        counts = _num_trained(pieces, shard, base)
        num_trained += int(counts.sum())
        kept.append(pieces if shard.trained is None else pieces[counts > 0])
    full, rest = kept
    # A document is lost where no piece of it is left between its beginning and its end.
    owners = np.searchsorted(long["start"], np.concatenate(kept)["start"], side="right")
    return _Pieces(full, np.concatenate([whole, rest]), num_trained, len(long) - len(np.unique(owners)))


def _cut(documents: np.ndarray, seq_len: int, too_long: TooLong) -> tuple[np.ndarray, np.ndarray]:
    """Of documents longer than a row: pieces as long as one, and shorter ones."""
    none = np.empty(0, SPAN)
    if too_long == "drop":
        return none, none
    if too_long != "split":
        full = documents.copy()
        full["start"] += (full["length"] - seq_len) if too_long == "left" else 0
        full["length"] = seq_len
        return full, none
    num_full = documents["length"] // seq_len
    full = np.empty(int(num_full.sum()), SPAN)
    within = np.arange(len(full)) - np.repeat(np.cumsum(num_full) - num_full, num_full)
    full["start"] = np.repeat(documents["start"], num_full) + within * seq_len
    full["length"] = seq_len
    rest = documents.copy()
    rest["start"] += num_full * seq_len
    rest["length"] -= num_full * seq_len
    return full, rest[rest["length"] > 0]


def _num_trained(pieces: np.ndarray, shard: Shard, base: int) -> np.ndarray:
    """(N,) how many tokens of each piece are in the loss; its first one never is."""
    if shard.trained is None:
        return pieces["length"] - 1
    starts = pieces["start"] - base + 1
    return np.array(
        [
            shard.trained[start : start + length - 1].sum()
            for start, length in zip(starts, pieces["length"], strict=True)
        ],
        np.int64,
    )


def _packed(rests: np.ndarray, seq_len: int, room: int) -> tuple[np.ndarray, np.ndarray]:
    """The spans in the order of the rows they were packed into, and the number of spans of each row."""
    row_of, num_rows = best_fit(rests["length"] + room, seq_len)
    return rests[np.argsort(row_of, kind="stable")], np.bincount(row_of, minlength=num_rows)
