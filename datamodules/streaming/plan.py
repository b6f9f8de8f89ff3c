"""What a stream is: all that decides which documents come when, in plain values that can be sent to another process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np

from datamodules.cache import key_of
from datamodules.errors import DataError
from datamodules.serving.orders.order import permute
from datamodules.sources.bad_records import OnBadRecord
from datamodules.sources.units import Unit
from datamodules.streaming.remote import public

VERSION = 1


class Cursor(NamedTuple):
    """A place between two documents.

    Args:
        turn: how often the stream has been read from end to end.
        place: files of this turn before the one that it is in.
        skip: documents of that file before it.
    """

    turn: int = 0
    place: int = 0
    skip: int = 0


@dataclass(frozen=True)
class Plan:
    """What is read, in which order, and what is made of it.

    Args:
        units: the files of the stream, or the shards of hub data sets.
        val_units: what validates, all of it. Empty: documents of `units` do, by their hashes.
        val_share: the share of the hashes that validate.
        tokenizer: the tokenizer's JSON.
        encoder: settings of the `TextEncoder`.
        seq_len, room: tokens of a row, and those that stay free in one and beside each piece.
        window_tokens: so many are shuffled together.
        shuffle: False: files, documents and rows in their order.
        seed: of the order.
        on_bad_record: `stop` or `skip`.
        patience: seconds; see `Patience`.
        turns: how many of the files each turn has, where they come in while the stream is read; None: each has all.
        ledger: names the order in which they came.
        filters: specs of what takes documents out of `units`; see `spec_of`.
    """

    units: tuple[Unit, ...]
    val_units: tuple[Unit, ...]
    val_share: float
    tokenizer: str
    encoder: dict[str, Any]
    seq_len: int
    room: tuple[int, int]
    window_tokens: int
    shuffle: bool
    seed: int
    on_bad_record: OnBadRecord
    patience: float
    turns: tuple[int, ...] | None = None
    ledger: str = ""
    filters: tuple[dict[str, Any], ...] = ()

    def files_of(self, turn: int) -> list[int]:
        """The numbers of the files in the order of a turn."""
        if self.turns is not None:
            first = sum(self.turns[:turn])
            return list(range(first, first + self.turns[turn]))
        if not self.shuffle:
            return list(range(len(self.units)))
        return permute(np.arange(len(self.units)), len(self.units), self.seed, turn).tolist()

    def key(self) -> str:
        """Names all windows. Neither where the files lie nor how they are reached counts, but what they are."""
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("units", "val_units", "on_bad_record", "patience", "turns", "ledger", "filters"):
            del kept[name]
        return key_of(
            VERSION, kept, *self.filters, pins(self.units) if self.turns is None else ["watched", self.ledger]
        )

    def grown(self, ledger: str, deliveries: Sequence[Sequence[Unit]]) -> Plan:
        """The same with more turns, each of new files."""
        units = [unit for files in deliveries for unit in files]
        turns = (*(self.turns or ()), *map(len, deliveries))
        return replace(self, units=(*self.units, *units), turns=turns, ledger=ledger)

    def val_key(self) -> str:
        """Names what validates."""
        if self.val_units:
            return key_of(VERSION, self.tokenizer, self.encoder, self.seq_len, pins(self.val_units))
        return key_of(
            VERSION, self.tokenizer, self.encoder, self.seq_len, *self.filters, pins(self.units), self.val_share
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Plan:
        """What `to_json` was made of."""
        units = {name: tuple(Unit(**unit) for unit in values[name]) for name in ("units", "val_units")}
        turns = None if values["turns"] is None else tuple(values["turns"])
        tuples = {name: tuple(values[name]) for name in ("room", "filters")}
        return Plan(**values | units | tuples | {"turns": turns})


def pins(units: Sequence[Unit]) -> list[list[Any]]:
    """Of each file its name, and what it is as it was found."""
    return [[public(u.path), u.digest, u.start, u.format, u.column, u.name, u.split] for u in units]


def check_same_files(before: Sequence[Sequence[Any]], now: Sequence[Sequence[Any]]) -> None:
    """Compare what `pins` says of the files of a checkpoint and of those that are there now.

    Raises:
        DataError: with the first file that is gone, new, or another one.
    """
    old, new = ({(pin[0], *pin[2:]): pin[1] for pin in files} for files in (before, now))
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name) == new.get(name):
            continue
        what = "is gone" if name not in new else "is new" if name not in old else "has changed: size, ETag or time"
        raise DataError(
            f"path: {name[0]} {what} since the checkpoint, so that its place in the stream means nothing. Put the"
            " files back as they were, or begin another run by --trainer.default_root_dir; to train its weights on"
            " other data, name its model folder by --model.backbone.path"
        )
