"""The documents of a stream from any place in it on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from datamodules.encoding.batches import bounded_batches
from datamodules.encoding.texts import TextEncoder
from datamodules.errors import DataError
from datamodules.filters import Chain
from datamodules.filters.filter import filter_of
from datamodules.records.text_source import texts_of
from datamodules.sources.bad_records import BadRecords
from datamodules.sources.units import Unit
from datamodules.storage.hashing import text_hash
from datamodules.storage.shards import Document
from datamodules.streaming.patience import Patience
from datamodules.streaming.plan import Cursor, Plan
from datamodules.streaming.remote import changed, check_unchanged, digest_of, fetch, is_remote, public

Kept = Callable[[int], bool]  # whether a document of this hash is wanted


class Reader:
    """Reads a stream's files one after the other. While one is read the next one is fetched, so that two are on disk.

    Args:
        plan: the stream.
        encoder: makes documents of texts.
        folder: where the copies are put; nothing else may be in it.

    Attributes:
        digests: of the bytes of the files that were fetched, by their numbers. A file must be the same each time.
        num_bad, first_bad: records that could not be trained on.
        funnel: what the filters took, of all that was read so far.
    """

    def __init__(self, plan: Plan, encoder: TextEncoder, folder: Path) -> None:
        self.plan = plan
        self.encoder = encoder
        self.folder = folder
        self.patience = Patience(plan.patience)
        self.digests: dict[int, str] = {}
        self.num_bad, self.first_bad = 0, ""
        self.chain = Chain([filter_of(spec) for spec in plan.filters])
        self.funnel = self.chain.funnel()
        self._pool = ThreadPoolExecutor(1)
        self._coming: dict[int, Future[Path]] = {}

    def documents(self, begin: Cursor, is_kept: Kept) -> Iterator[tuple[Document, Cursor]]:
        """The documents from a place on to the end of its turn, each with the place behind it."""
        files = self.plan.files_of(begin.turn)
        for place in range(begin.place, len(files)):
            skip = begin.skip if place == begin.place else 0
            for document, number in self._of_file(files[place], files[place + 1 : place + 2], skip, is_kept):
                yield document, Cursor(begin.turn, place, number)

    def _of_file(self, number: int, following: list[int], skip: int, is_kept: Kept) -> Iterator[tuple[Document, int]]:
        unit = self.plan.units[number]
        with self._opened(number, following) as here, _naming(here, unit):
            bad = BadRecords(here, self.plan.on_bad_record)
            yield from encoded(self.encoder, islice(texts_of(here, bad), skip, None), skip, is_kept, self._passes)
        self.num_bad += bad.count
        self.first_bad = self.first_bad or bad.first.replace(here.path, public(unit.path))

    def _passes(self, text: str) -> bool:
        return self.chain.passes(text, self.funnel)

    @contextmanager
    def _opened(self, number: int, following: list[int]) -> Iterator[Unit]:
        """A file that can be read here; the next one is on its way then."""
        unit = self.plan.units[number]
        if not is_remote(unit.path):
            check_unchanged(unit, self.patience)
            yield unit
            return
        self._ask_for(number)
        copy = self._coming.pop(number).result()
        try:
            digest = digest_of(copy)
            if self.digests.setdefault(number, digest) != digest:
                raise changed(unit, "its length is the same and its content is not")
            for one in following:
                self._ask_for(one)
            yield replace(unit, path=str(copy))
        finally:
            copy.unlink(missing_ok=True)

    def _ask_for(self, number: int) -> None:
        unit = self.plan.units[number]
        if is_remote(unit.path) and number not in self._coming:
            self._coming[number] = self._pool.submit(partial(self._fetch, number, unit))

    def _fetch(self, number: int, unit: Unit) -> Path:
        copy = self.folder / f"{number}-{PurePosixPath(public(unit.path)).name}"
        fetch(unit, copy, self.patience)
        return copy

    def close(self) -> None:
        """Give up what is on its way, and remove the copies."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def encoded(
    encoder: TextEncoder, texts: Iterator[str], before: int, is_kept: Kept, passes: Callable[[str], bool]
) -> Iterator[tuple[Document, int]]:
    """The documents that are wanted, each with how many texts there are up to it.

    Args:
        before: texts before the first one.
        is_kept: by its hash.
        passes: by what it says.
    """
    hashed = ((number, text, text.encode()) for number, text in enumerate(texts, before + 1))
    wanted = (
        (number, text, len(data), digest)
        for number, text, data in hashed
        if is_kept(digest := text_hash(data)) and passes(text)
    )
    for batch in bounded_batches(wanted, lambda one: len(one[1])):
        ids = encoder.encode([text for _, text, _, _ in batch])
        for (number, _, size, digest), its in zip(batch, ids, strict=True):
            yield Document(its, None, size, digest), number


@contextmanager
def _naming(here: Unit, unit: Unit) -> Iterator[None]:
    """An error about a copy becomes one about the file; raises `DataError`."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(here.path, public(unit.path))) from error
