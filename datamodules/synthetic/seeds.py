"""The real records that generators begin with, on disk: any of them is read at once, and none is held."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from datamodules.cache import key_of, made_folder
from datamodules.chat import ChatDataModule
from datamodules.encoding.prompts import prompt_of
from datamodules.errors import DataError
from datamodules.records.conversations import conversation_of
from datamodules.records.own_keys import own_keys, without
from datamodules.records.record_source import RecordSource, record_units
from datamodules.records.shapes import PROMPT_SHAPES
from datamodules.records.turns import UnfitError
from datamodules.sources.formats import records
from datamodules.sources.surrogates import encodable
from datamodules.sources.units import Bad
from datamodules.synthetic.candidate import Message
from llm_lightning_safety.json_values import json_default

SCHEMA = pa.schema([("seed", pa.string())])
SEEDS_A_BATCH = 1024


@dataclass(frozen=True)
class Seed:
    """A real record.

    Args:
        id: its own `id`, else a hash of what it says.
        messages: the conversation; where it has a response, that is the last message.
        rejected: of a pair the response that is not preferred.
        columns: all that the record holds.
    """

    id: str
    messages: list[Message]
    rejected: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> list[Message]:
        """What stands before the response."""
        return self.messages[:-1] if self.messages[-1]["role"] == "assistant" else self.messages

    @property
    def question(self) -> str:
        """What the user says last."""
        return next((str(m["content"]) for m in reversed(self.prompt) if m["role"] == "user"), "")

    @property
    def answer(self) -> str:
        """The assistant's last message; empty where the record is a bare prompt."""
        return str(self.messages[-1]["content"]) if self.messages[-1]["role"] == "assistant" else ""


class Seeds:
    """Seeds by number, read from a memory-mapped file.

    Args:
        path: the file; its name stands for its content.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def key(self) -> str:
        """Names the content."""
        return self.path.stem

    @cached_property
    def _column(self) -> pa.ChunkedArray:
        with pa.memory_map(str(self.path)) as file:
            return pa.ipc.open_file(file).read_all().column("seed")

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, number: int) -> Seed:
        return Seed(**json.loads(self._column[number].as_py()))

    def __iter__(self) -> Iterator[Seed]:
        return (self[number] for number in range(len(self)))


def training_seeds(data: ChatDataModule, folder: Path) -> Seeds:
    """The training records of a DataModule that is prepared; what it validates on is not among them.

    Raises:
        DataError: there are none.
    """
    key = key_of(data.records_key("train"))
    found = (
        _seed(one.messages, one.record, one.rejected)
        for one in data.records("train")
        if all(isinstance(message.get("content"), str) for message in one.messages)
    )
    return _written(folder / key, found, "data: no record of it is trained on, so there are no seeds")


def prompt_seeds(path: str, folder: Path, cache: Path) -> Seeds:
    """The prompts of a file, a folder, a glob or a hub data set, in the shapes that `PromptDataModule` reads.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    units = record_units(RecordSource(path), cache, shapes=PROMPT_SHAPES)
    key = key_of([[unit.digest, unit.start, unit.stop, unit.shape] for unit in units])

    def found() -> Iterator[Seed]:
        for unit in units:
            for place, record in records(unit):
                try:
                    if isinstance(record, Bad):
                        raise UnfitError(record.reason)
                    asked = prompt_of(record, unit.shape, None)
                except (UnfitError, RecursionError) as unfit:
                    raise DataError(f"generators: {unit.path}, record at {place}: {unfit}") from unfit
                yield _seed(asked.messages, asked.others)

    return _written(folder / key, found(), f"generators: {path!r} holds no prompts")


def solved_seeds(path: str, folder: Path, cache: Path) -> Seeds:
    """The conversations of a file, a folder, a glob or a hub data set, in the shapes that fine-tuning reads.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    units = record_units(RecordSource(path), cache)
    key = key_of("solved", [[unit.digest, unit.start, unit.stop, unit.shape] for unit in units])

    def found() -> Iterator[Seed]:
        for unit in units:
            for place, record in records(unit):
                if isinstance(record, Bad):
                    raise DataError(f"{unit.path}, record at {place}: {record.reason}")
                conversation = conversation_of(record, unit.shape, unit.columns, "train")
                if isinstance(conversation, Bad):
                    raise DataError(f"{unit.path}, record at {place}: {conversation.reason}")
                yield _seed(conversation.messages, record)

    return _written(folder / key, found(), f"{path!r} holds no conversations")


def _seed(messages: list[Message], record: dict[str, Any], rejected: str | None = None) -> Seed:
    messages = without(messages, own_keys(messages))
    id = record.get("id")
    return Seed(
        encodable(str(id)) if isinstance(id, str | int) else key_of(messages, rejected)[:16], messages, rejected, record
    )


def _written(folder: Path, seeds: Iterator[Seed], why_none: str) -> Seeds:
    name = f"{folder.name}.arrow"
    found = Seeds(made_folder(folder, "the seeds", lambda temporary: _write(temporary / name, seeds)) / name)
    if not len(found):
        raise DataError(why_none)
    return found


def _write(path: Path, seeds: Iterator[Seed]) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        batch: list[str] = []
        for seed in seeds:
            batch.append(json.dumps(asdict(seed), default=json_default))
            if len(batch) == SEEDS_A_BATCH:
                writer.write_batch(pa.record_batch([batch], schema=SCHEMA))
                batch = []
        writer.write_batch(pa.record_batch([batch], schema=SCHEMA))
