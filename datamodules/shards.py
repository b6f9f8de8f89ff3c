"""Token shards: the tokens of one unit in one file, made once and named by their content."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.cache import atomic_file, key_of
from datamodules.errors import DataError
from datamodules.file_array import FileArray
from datamodules.texts import OnBadRecord, Texts
from datamodules.units import Unit

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = 1  # of what is written here and of how units are read; a change makes all shards anew
DOCUMENTS_AT_ONCE = 256
CHARACTERS_AT_ONCE = 4 << 20  # an encoding takes some 100 bytes a token: this keeps a process under a few hundred MB

# A document: where its tokens end in the shard, its length in UTF-8 bytes, and a hash of its text.
DOCUMENT = np.dtype([("end", "<u8"), ("bytes", "<u8"), ("hash", "<u8")])


@dataclass(frozen=True)
class Shard:
    """A unit's tokens in the cache: `PATH.tokens`, `PATH.documents`, and `PATH.json`, which is written last."""

    path: str

    @staticmethod
    def of(unit: Unit, folder: Path) -> Shard:
        """Where the unit's shard is, or will be, in the folder of its tokenizer."""
        key = key_of(VERSION, unit.digest, unit.start, unit.stop, unit.format, unit.column)
        return Shard(str(folder / key))

    @property
    def name(self) -> str:
        """What it holds: the digests of the tokenizer and of the unit. Independent of where the cache lies."""
        return "/".join(Path(self.path).parts[-2:])

    @property
    def complete(self) -> bool:
        """Whether it has been written to the end."""
        return Path(f"{self.path}.json").exists()

    @cached_property
    def facts(self) -> dict[str, Any]:
        """`num_documents`, `num_tokens`, `num_bytes` (UTF-8), `num_bad` and `first_bad` (records), `dtype`."""
        return json.loads(Path(f"{self.path}.json").read_text())

    @cached_property
    def tokens(self) -> FileArray:
        """All tokens, read as they are used."""
        return FileArray(f"{self.path}.tokens", np.dtype(self.facts["dtype"]))

    def documents(self) -> np.ndarray:
        """All documents, as `DOCUMENT`, in memory: some MB at the most, as units are bounded."""
        return np.fromfile(f"{self.path}.documents", DOCUMENT)


def text_hash(data: bytes) -> int:
    """64 bits that depend on a document's text alone: copies of a document fall on the same side of a split."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Encoder:
    """Turns texts into framed token ids: int arrays of the smallest type that the vocabulary fits."""

    tokenizer: Tokenizer
    prefix: list[int]
    suffix: list[int]

    @cached_property
    def dtype(self) -> np.dtype:
        """uint16 where all ids are below 65,536, else uint32."""
        return np.dtype("<u2" if max(self.tokenizer.get_vocab().values()) < 1 << 16 else "<u4")

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """One array a text."""
        # A text that spells a special token is text: it must not end a document or open a turn of a conversation.
        self.tokenizer.encode_special_tokens = True
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array([*self.prefix, *encoding.ids, *self.suffix], self.dtype) for encoding in encodings]


def write_shard(unit: Unit, shard: Shard, encoder: Encoder, on_bad: OnBadRecord) -> None:
    """Reads, tokenizes and writes one unit, streaming: memory does not grow with the unit.

    Raises:
        DataError: a bad record, with `on_bad="stop"`; or the disk is full.
    """
    texts = Texts(unit, on_bad)
    num_documents = num_tokens = num_bytes = 0
    try:
        with (
            atomic_file(Path(f"{shard.path}.tokens")) as tokens_path,
            atomic_file(Path(f"{shard.path}.documents")) as documents_path,
            tokens_path.open("wb") as tokens_file,
            documents_path.open("wb") as documents_file,
        ):
            for batch in _batches(iter(texts)):
                documents = np.empty(len(batch), DOCUMENT)
                for document, text, ids in zip(documents, batch, encoder.encode(batch), strict=True):
                    data = text.encode()
                    ids.tofile(tokens_file)
                    num_tokens += len(ids)
                    num_bytes += len(data)
                    document["end"], document["bytes"], document["hash"] = num_tokens, len(data), text_hash(data)
                documents.tofile(documents_file)
                num_documents += len(batch)
        facts = {
            "num_documents": num_documents,
            "num_tokens": num_tokens,
            "num_bytes": num_bytes,
            "num_bad": texts.num_bad,
            "first_bad": texts.first_bad,
            "dtype": encoder.dtype.str,
        }
        with atomic_file(Path(f"{shard.path}.json")) as path:
            path.write_text(json.dumps(facts))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(
            f"cache_dir: the disk of {Path(shard.path).parent} is full; make room or name another"
        ) from error


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Lists of texts, bounded in number and, but for single giants, in characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == DOCUMENTS_AT_ONCE or size + len(text) > CHARACTERS_AT_ONCE):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch
