"""Fills windows, one after the other or from any place on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from datamodules.cache import build_lock, remove_leftovers, room_on_disk
from datamodules.encoding.texts import TextEncoder
from datamodules.errors import DataError
from datamodules.sources.units import Unit
from datamodules.storage.rows import Selection, write_rows
from datamodules.storage.shards import Document, Shard, write_documents
from datamodules.streaming.plan import Cursor, Plan
from datamodules.streaming.reader import Kept, Reader
from datamodules.streaming.remote import changed
from datamodules.streaming.window import SHARD, Pin, Window
from llm_lightning_safety.files import atomic_folder
from llm_lightning_safety.seals import write_json

VAL_DOCUMENTS = 512  # held out by their hashes; at 0.01 of the documents 51,200 have to be looked at for so many
HASHES = 2**64


class Builder:
    """Writes windows of a stream into the cache.

    Args:
        plan: the stream.
        root: where streams are kept.
        scratch: for copies of files; nothing else may be in it.
    """

    def __init__(self, plan: Plan, root: Path, scratch: Path) -> None:
        self.plan = plan
        self.root = root
        self.scratch = scratch
        self.pin = Pin(scratch)
        self.encoder = TextEncoder(Tokenizer.from_str(plan.tokenizer), **plan.encoder)
        self.last_to_validate = int(plan.val_share * HASHES) - 1
        self.reader = self._reader(plan, "train")
        self._at: Cursor | None = None
        self._running: Iterator[tuple[Document, Cursor]] = iter(())

    def _reader(self, plan: Plan, name: str) -> Reader:
        (self.scratch / name).mkdir(parents=True, exist_ok=True)
        return Reader(plan, self.encoder, self.scratch / name)

    def window(self, number: int, begin: Cursor, digests: dict[int, str]) -> None:
        """Write the window that begins at a place, unless it is there.

        Args:
            number: of the window.
            begin: where in the stream.
            digests: of files, as they were when they were read before.

        Raises:
            DataError: a file cannot be read, or is not what it was; there is no text at all.
        """
        self._compare(digests)
        folder = self.root / self.plan.key() / str(number)
        if Window(folder).is_there:
            return
        if begin != self._at:
            self._running = self.reader.documents(begin, lambda digest: digest > self.last_to_validate)
        self._at, place = None, begin  # after an error nobody knows

        def filled() -> Iterator[Document]:
            nonlocal place
            room = self.plan.window_tokens
            for document, place in self._running:  # noqa: B007 (used behind the loop)
                yield document
                room -= len(document.ids)
                if room <= 0:
                    return
            place = Cursor(begin.turn + 1)

        files = self.plan.files_of(begin.turn)
        self._write(folder, filled, self.reader, self.plan.room, lambda: self._seen(files, begin, place))
        self._at = place if place.turn == begin.turn else None

    def grow(self, ledger: str, deliveries: Sequence[Sequence[Unit]]) -> None:
        """More turns, each of new files."""
        self.plan = self.reader.plan = self.plan.grown(ledger, deliveries)

    def _compare(self, digests: dict[int, str]) -> None:
        for number, digest in digests.items():
            if self.reader.digests.setdefault(number, digest) != digest:
                raise changed(self.plan.units[number], "its length is the same and its content is not")

    def _seen(self, files: list[int], begin: Cursor, end: Cursor) -> dict[str, Any]:
        """What a run has to know that goes on behind the window: of the file that it ends in, which bytes were read."""
        cut = files[end.place] if end.turn == begin.turn else None
        digests = {} if cut not in self.reader.digests else {str(cut): self.reader.digests[cut]}
        return {"begin": begin, "end": end, "digests": digests}

    def validation(self) -> None:
        """Write what validates, unless it is there: all of `val_units`, else the first documents that are held out."""
        folder = self.root / f"val-{self.plan.val_key()}"
        if Window(folder).is_there:
            return
        named = bool(self.plan.val_units)
        plan = replace(self.plan, units=self.plan.val_units or self.plan.units, shuffle=False)
        reader = self._reader(replace(plan, filters=()) if named else plan, "val")
        is_kept: Kept = (lambda _: True) if named else (lambda digest: digest <= self.last_to_validate)

        def chosen() -> Iterator[Document]:
            for number, (document, _) in enumerate(reader.documents(Cursor(), is_kept), 1):
                yield document
                if number == VAL_DOCUMENTS and not named:
                    return

        ends = {"begin": Cursor(), "end": Cursor(), "digests": {}}
        try:
            self._write(folder, chosen, reader, (0, 0), lambda: ends)
        finally:
            reader.close()

    def _write(
        self,
        folder: Path,
        documents: Callable[[], Iterator[Document]],
        reader: Reader,
        room: tuple[int, int],
        facts: Callable[[], dict[str, Any]],
    ) -> None:
        before, reader.first_bad = reader.num_bad, ""
        reader.funnel = reader.chain.funnel()
        with build_lock(folder.parent, "a window of this stream"), room_on_disk(self.root):
            remove_leftovers(folder.parent)
            if Window(folder).is_there:
                return
            with atomic_folder(folder) as new:
                shard = Shard(str(new / SHARD))
                statistics = write_documents(documents(), shard, self.encoder.dtype)
                write_json(Path(f"{shard.path}.json"), statistics)
                write_rows([shard], Selection(), self.plan.seq_len - room[0], "split", room[1], new)
                bad = {"num_bad": reader.num_bad - before, "first_bad": reader.first_bad}
                num_rows = Window(new).rows.statistics["num_rows"]
                filtered = {"filtered": reader.funnel.as_json()} if reader.chain.filters else {}
                Window.write_facts(new, {**facts(), **bad, **filtered, "num_rows": num_rows})
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove what is on the way."""
        self.reader.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.pin.release()


def nothing_to_train_on(plan: Plan) -> DataError:
    """The error for a stream without documents."""
    return DataError(
        f"path: there is nothing to train on in {len(plan.units):,} files: no text, or all is held out or filtered"
    )
