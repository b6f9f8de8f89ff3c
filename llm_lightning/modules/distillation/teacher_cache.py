"""What a teacher finds likely, on disk: computed once, so that training needs no teacher.

Of each trained token the K likeliest next tokens and their log-probabilities are kept; what is left of the probability
is the tail. A cache is a folder named by all that its numbers depend on: the files of the teachers, the rows (records,
template, tokenizer, how they are cut), K, the temperature and the precision.

The tokens of a row stand at the row's own place, one behind the other; what a row leaves free of it is a hole in the
file, which takes no room on the disk. Behind each row that is there stands a checksum, so that a killed build goes on,
and a damaged row is noticed where it is read. Ranks write and read their own rows of the same files.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from llm_lightning.errors import UserError
from llm_lightning.modules.ranks import Ranks
from llm_lightning.objectives.distillation import TeacherChunk
from llm_lightning_safety.files import make_folder

VERSION = 1  # of the numbers and of how they are written
SMALL = 2**16
"""Up to so many tokens, an id takes two bytes."""
BLOCK = 512
"""Bytes of what `st_blocks` counts (POSIX)."""


class Part(NamedTuple):
    """Some rows.

    Args:
        name: of its files.
        num_rows: how many.
        batches: all of them, with `row_numbers`, each time anew.
    """

    name: str
    num_rows: int
    batches: Callable[[], Iterable[Mapping[str, Any]]]


class Shape(NamedTuple):
    """Of a row.

    Args:
        seq_len: its tokens.
        top_k: K.
        vocab_size: of which K are named.
    """

    seq_len: int
    top_k: int
    vocab_size: int

    @property
    def id_dtype(self) -> Any:
        """The narrowest that holds each token's id."""
        return np.uint16 if self.vocab_size <= SMALL else np.int32

    @property
    def bytes_a_token(self) -> int:
        """On the disk."""
        return self.top_k * (4 + np.dtype(self.id_dtype).itemsize)


class CachedTeacher(NamedTuple):
    """The rows of a batch as the loss asks for them.

    Args:
        logprobs: (N, K) float32.
        ids: (N, K) int64.
    """

    logprobs: Tensor
    ids: Tensor

    def chunk(self, places: slice, temperature: float) -> TeacherChunk:
        """See `objectives.distillation.Teacher`; the temperature is that of the cache."""
        missing = max(0, places.stop - len(self.ids))
        logprobs, ids = (torch.nn.functional.pad(part[places], (0, 0, 0, missing)) for part in self)
        return TeacherChunk(logprobs, ids)


def cache_key(*said: Any) -> str:
    """The name of a cache, by all that its numbers depend on; JSON."""
    return hashlib.blake2b(json.dumps([VERSION, *said], default=str).encode(), digest_size=16).hexdigest()


class TeacherCache:
    """The numbers of one teacher on some parts of the data.

    Args:
        folder: of this key.
        parts: of the data, by name.
        shape: of a row.
        ranks: that share the work.
        barrier: where they wait for each other.
        is_first: whether this rank makes the files.
    """

    def __init__(
        self,
        folder: Path,
        parts: Sequence[Part],
        shape: Shape,
        ranks: Ranks,
        barrier: Callable[[], Any],
        is_first: bool,
    ) -> None:
        self.folder, self.shape, self.ranks, self.barrier = folder, shape, ranks, barrier
        self.parts = {part.name: part for part in parts if part.num_rows}
        if is_first:
            make_folder(folder)
            for name in self.parts:
                for path, kind, shape_of in self._files(name):
                    size = np.dtype(kind).itemsize * int(np.prod(shape_of))
                    if not path.exists() or path.stat().st_size != size:
                        with path.open("wb") as file:
                            file.truncate(size)  # a hole as long as all of it
        barrier()
        self.arrays = {
            name: [np.memmap(path, kind, "r+", shape=shape_of) for path, kind, shape_of in self._files(name)]
            for name in self.parts
        }

    def _files(self, name: str) -> list[tuple[Path, Any, tuple[int, ...]]]:
        rows, (seq_len, top_k, _) = self.parts[name].num_rows, self.shape
        return [
            (self.folder / f"{name}.logprobs", np.float32, (rows, seq_len, top_k)),
            (self.folder / f"{name}.ids", self.shape.id_dtype, (rows, seq_len, top_k)),
            (self.folder / f"{name}.checksums", np.uint32, (rows,)),
        ]

    def missing(self) -> int:
        """Rows that are still to come."""
        return sum(int((checksums == 0).sum()) for *_, checksums in self.arrays.values())

    def in_words(self) -> str:
        """Where it is, and the room that it takes on the disk, without the holes."""
        blocks = sum(path.stat().st_blocks for name in self.parts for path, *_ in self._files(name))
        return f"{self.folder} ({blocks * BLOCK / 1e6:,.1f} MB, {self.shape.bytes_a_token} bytes a trained token)"

    def fill(self, teacher: Callable[[Mapping[str, Any]], TeacherChunk], shown: bool) -> None:
        """Compute what is missing; every rank calls it.

        Args:
            teacher: the K likeliest tokens of a batch's trained ones, with `ids`.
            shown: whether this rank draws the bar, in which its own rows stand for those of all.
        """
        missing = self.missing()
        with tqdm(total=missing, desc="Teacher", unit="row", disable=not shown) as bar:
            for name, part in self.parts.items():
                *_, checksums = self.arrays[name]
                for batch in part.batches():
                    numbers = batch["row_numbers"].numpy()
                    num_missing = int((checksums[numbers[numbers >= 0]] == 0).sum())
                    # Ranks that gather each other's weights run the teacher together.
                    if float(self.ranks.sum(torch.tensor(float(num_missing)))):
                        self._put(name, numbers, _counts(batch), teacher(batch))
                    bar.update(min(num_missing * self.ranks.count, missing - bar.n))
                for array in self.arrays[name]:
                    array.flush()
        self.barrier()

    def look_up(self, name: str, batch: Mapping[str, Any]) -> CachedTeacher:
        """What belongs to the trained tokens of a batch; raises `UserError` where a row is not as it was written."""
        logprobs, ids, checksums = self.arrays[name]
        found = []
        for number, count in zip(batch["row_numbers"].tolist(), _counts(batch), strict=True):
            if number < 0:
                continue
            row = np.array(logprobs[number, :count]), np.array(ids[number, :count])
            if _checksum(*row) != checksums[number]:
                raise UserError(f"Row {number} of {self.folder / name}.* is damaged: delete that folder.")
            found.append(row)
        empty = np.zeros((0, self.shape.top_k))
        parts = [np.concatenate(each) for each in zip(*found, strict=True)] or [empty] * 2
        return CachedTeacher(torch.from_numpy(parts[0]).float(), torch.from_numpy(parts[1].astype(np.int64)))

    def _put(self, name: str, numbers: np.ndarray, counts: list[int], chunk: TeacherChunk) -> None:
        logprobs, ids, checksums = self.arrays[name]
        assert chunk.ids is not None
        values = [chunk.logprobs.cpu().float().numpy(), chunk.ids.cpu().numpy().astype(self.shape.id_dtype)]
        start = 0
        for number, count in zip(numbers.tolist(), counts, strict=True):
            row = [part[start : start + count] for part in values]
            start += count
            if number >= 0:
                logprobs[number, :count], ids[number, :count] = row
                checksums[number] = _checksum(*row)


def _counts(batch: Mapping[str, Any]) -> list[int]:
    """Trained tokens of each row."""
    counted: list[int] = (batch["labels"][:, 1:] != -100).sum(1).tolist()
    return counted


def _checksum(logprobs: np.ndarray, ids: np.ndarray) -> int:
    """Never 0, which says that a row is missing."""
    return zlib.crc32(np.ascontiguousarray(ids).tobytes(), zlib.crc32(np.ascontiguousarray(logprobs).tobytes())) or 1
