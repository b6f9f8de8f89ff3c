"""Token shards: the tokens of one unit in one file, made once and named by their content."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from datamodules.cache import key_of, room_on_disk
from datamodules.sources.bad_records import BadRecords, OnBadRecord
from datamodules.sources.units import Unit
from datamodules.storage.file_array import FileArray, SummedFile
from llm_lightning_safety.files import atomic_file
from llm_lightning_safety.seals import read_json, write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = 7  # of what is written here and of how units are read; a change makes all shards anew
DOCUMENTS_AT_ONCE = 1024  # their records are written together

# A document: where its tokens end in the shard, how many of them are in the loss, how many stand before its last reply,
# its UTF-8 bytes, and its split hash.
DOCUMENT = np.dtype([("end", "<u8"), ("trained", "<u8"), ("prompt", "<u8"), ("bytes", "<u8"), ("hash", "<u8")])


class Document(NamedTuple):
    """A document on its way into a shard.

    Args:
        ids: (n,) token ids.
        trained: (n,) bool, which of them are in the loss; None for all. The first never is: nothing predicts it.
        num_bytes: UTF-8 bytes of its text.
        hash: 64 bits; documents of equal hash fall on the same side of a split.
        prompt: tokens before its last reply; 0 where it has none.
        details: what else the encoder knows of it, as many bytes for every document.
    """

    ids: np.ndarray
    trained: np.ndarray | None
    num_bytes: int
    hash: int
    prompt: int = 0
    details: bytes = b""

    @property
    def num_trained(self) -> int:
        """How many of its tokens are in the loss."""
        return len(self.ids) - 1 if self.trained is None else int(self.trained[1:].sum())


class Encoder(Protocol):
    """Turns the records of a unit into documents."""

    @property
    def tokenizer(self) -> Tokenizer:
        """A copy of its own."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of token ids on disk."""
        ...

    def settings(self) -> dict[str, Any]:
        """What another process needs to make the same encoder around the same tokenizer; JSON."""
        ...

    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        """The unit's documents, streaming; those that cannot be trained on are noted."""
        ...


@dataclass(frozen=True)
class Kept:
    """Which documents of a shard are used: bools in a file of the cache.

    Args:
        path: of the file, in a folder whose name stands for its content.
        start: where those of the shard begin.
    """

    path: str
    start: int


@dataclass(frozen=True)
class Shard:
    """A unit's tokens in the cache: `PATH.tokens`, `PATH.trained` (the loss mask; not there where all are in it),
    `PATH.documents`, `PATH.details` (where the encoder has some), and `PATH.json`, which is written last.

    Args:
        path: what all of them begin with.
        kept: which documents are used; None: all of them.
    """

    path: str
    kept: Kept | None = None

    @staticmethod
    def of(unit: Unit, folder: Path) -> Shard:
        """Where the unit's shard is, or will be, in the folder of its tokenizer."""
        key = key_of(VERSION, unit.digest, unit.start, unit.stop, unit.format, unit.column, unit.shape, unit.columns)
        return Shard(str(folder / key))

    @property
    def name(self) -> str:
        """What it holds: the digests of the tokenizer and of the unit, and of what chose from it. Independent of where
        the cache lies.
        """
        name = "/".join(Path(self.path).parts[-2:])
        return name if self.kept is None else f"{name}/{Path(self.kept.path).parent.name}:{self.kept.start}"

    @property
    def complete(self) -> bool:
        """Whether it has been written to the end, and its files are as long as they were then."""
        try:
            sizes = read_json(Path(f"{self.path}.json"))["sizes"]
            return all(Path(f"{self.path}.{name}").stat().st_size == size for name, size in sizes.items())
        except (OSError, ValueError, KeyError):
            return False

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """`num_documents`, `num_tokens`, `num_bytes` (UTF-8), `num_bad` and `first_bad` (records), `left_out` (records,
        by the reason), `unread` (records, by the key of their turns that is not written), `filtered` (what filters made
        of the documents, where there are some), `dtype`, `sizes` (bytes of each file).
        """
        return read_json(Path(f"{self.path}.json"))

    @cached_property
    def tokens(self) -> FileArray:
        """All tokens, read as they are used."""
        return FileArray(f"{self.path}.tokens", np.dtype(self.statistics["dtype"]))

    @cached_property
    def trained(self) -> FileArray | None:
        """For each token whether it is in the loss, bool; None where all are."""
        path = f"{self.path}.trained"
        return FileArray(path, np.dtype(bool)) if Path(path).exists() else None

    def documents(self) -> np.ndarray:
        """All documents, as `DOCUMENT`, in memory: some MB at the most, as units are bounded."""
        return FileArray(f"{self.path}.documents", DOCUMENT)[:]

    def uses(self) -> np.ndarray:
        """(N,) bool, which of the documents are used."""
        count = self.statistics["num_documents"]
        if self.kept is None:
            return np.ones(count, bool)
        return FileArray(self.kept.path, np.dtype(bool))[self.kept.start : self.kept.start + count]

    def hashes(self) -> np.ndarray:
        """(M,) uint64, the split hashes of the documents that are used."""
        return self.documents()["hash"][self.uses()]

    def document_at(self, start: int) -> int:
        """The number of the document that begins with this token, found by halving: none of them are held."""
        ends = FileArray(f"{self.path}.documents", DOCUMENT)
        return bisect_right(range(len(ends)), start, key=lambda number: int(ends[number : number + 1]["end"][0]))

    def details(self, dtype: np.dtype) -> FileArray:
        """What the encoder noted of each document."""
        return FileArray(f"{self.path}.details", dtype)


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """uint16 where all ids are below 65,536, else uint32."""
    return np.dtype("<u2" if max(tokenizer.get_vocab().values()) < 1 << 16 else "<u4")


def write_shard(unit: Unit, shard: Shard, encoder: Encoder, on_bad_record: OnBadRecord) -> None:
    """Reads, tokenizes and writes one unit, streaming: memory does not grow with the unit.

    Raises:
        DataError: a bad record, with `on_bad_record="stop"`; or the disk is full.
    """
    bad = BadRecords(unit, on_bad_record)
    with room_on_disk(Path(shard.path).parent):
        statistics = write_documents(encoder.documents(unit, bad), shard, encoder.dtype)
        statistics |= {"num_bad": bad.count, "first_bad": bad.first}
        statistics |= {"left_out": dict(bad.left_out), "unread": dict(bad.unread)}
        if bad.filtered:
            statistics["filtered"] = bad.filtered
        write_json(Path(f"{shard.path}.json"), statistics)


def write_documents(documents: Iterable[Document], shard: Shard, dtype: np.dtype) -> dict[str, Any]:
    """Writes a shard's files but for `PATH.json`, which is to hold what is returned: what there is of `statistics` in
    documents alone.
    """
    with ExitStack() as stack:
        files = _Files(shard, stack)
        for document in documents:
            files.add(document)
        files.flush()
        names = list(files.opened)
    sizes = {name: Path(f"{shard.path}.{name}").stat().st_size for name in names}
    return files.statistics | {"dtype": dtype.str, "sizes": sizes}


class _Files:
    """A shard being written; its files take their places when the stack closes without an error."""

    def __init__(self, shard: Shard, stack: ExitStack) -> None:
        self.shard = shard
        self.stack = stack
        self.opened: list[str] = []
        self.tokens, self.documents = self._open("tokens"), self._open("documents")
        self.trained: SummedFile | None = None
        self.details: SummedFile | None = None
        self.statistics = dict.fromkeys(("num_documents", "num_tokens", "num_bytes"), 0)
        self.pending: list[tuple[int, ...]] = []

    def _open(self, name: str) -> SummedFile:
        path = self.stack.enter_context(atomic_file(Path(f"{self.shard.path}.{name}")))
        self.opened.append(name)
        return self.stack.enter_context(SummedFile(path))

    def add(self, document: Document) -> None:
        """Appends the document to the files."""
        # Not `tofile`, which tells of a full disk without saying that it is one.
        self.tokens.write(document.ids.tobytes())
        if document.trained is not None:
            if self.trained is None:
                self.trained = self._open("trained")
            self.trained.write(document.trained.tobytes())
        if document.details:
            if self.details is None:
                self.details = self._open("details")
            self.details.write(document.details)
        self.statistics["num_documents"] += 1
        self.statistics["num_tokens"] += len(document.ids)
        self.statistics["num_bytes"] += document.num_bytes
        end, known = self.statistics["num_tokens"], (document.prompt, document.num_bytes, document.hash)
        self.pending.append((end, document.num_trained, *known))
        if len(self.pending) == DOCUMENTS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Writes what is known of the documents so far."""
        self.documents.write(np.array(self.pending, DOCUMENT).tobytes())
        self.pending = []
