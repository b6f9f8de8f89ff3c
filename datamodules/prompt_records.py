"""From records to prompts: what the model is asked, and the columns that a reward needs to judge its answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from datamodules.bad_records import BadRecords, OnBadRecord
from datamodules.batches import bounded_batches
from datamodules.chat_template import ChatTemplate
from datamodules.formats import records
from datamodules.record_shapes import is_empty
from datamodules.shards import text_hash
from datamodules.turns import UnfitError, kind_of, message_of, text_of
from datamodules.units import Bad, Record, Unit

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FIELDS = ("prompt", "messages", "conversations", "question", "instruction")
"""Columns that a prompt may stand in, in the order in which they are looked for."""

Said = str | list[dict[str, Any]]  # a text, or the messages of a conversation

SCHEMA = pa.schema([("ids", pa.list_(pa.int32())), ("record", pa.string()), ("hash", pa.uint64())])


class Prompt(NamedTuple):
    """A prompt.

    Args:
        ids: (n,) token ids.
        said: the text or the messages, as the data has them.
        columns: the record's other columns.
        number: of the prompt among all.
    """

    ids: np.ndarray
    said: Said
    columns: dict[str, Any]
    number: int = -1


@dataclass(frozen=True)
class PromptEncoder:
    """Turns records into prompts.

    Args:
        tokenizer: a copy of its own.
        prefix: ids before a plain text.
        template: writes conversations down; None where there is no chat template.
        chat: whether a text is what a user says, to be written down by the template.
        column: where the prompt stands; None: the first of `FIELDS` that is filled.
        check: from a record's other columns to why rewards could not judge an answer to it, or None.
    """

    tokenizer: Tokenizer
    prefix: list[int]
    template: ChatTemplate | None
    chat: bool
    column: str | None
    check: Callable[[dict[str, Any]], str | None] | None = None

    def prompts(self, unit: Unit, bad: BadRecords) -> Iterator[Prompt]:
        """The unit's prompts, streaming."""
        self.tokenizer.encode_special_tokens = False
        for batch in bounded_batches(self._written(unit, bad), lambda one: len(one[1])):
            encodings = self.tokenizer.encode_batch_fast([text for _, text, _ in batch], add_special_tokens=False)
            for (said, _, columns), encoding in zip(batch, encodings, strict=True):
                prefix = self.prefix if isinstance(said, str) and not self.chat else []
                yield Prompt(np.array([*prefix, *encoding.ids], np.int32), said, columns)

    def _written(self, unit: Unit, bad: BadRecords) -> Iterator[tuple[Said, str, dict[str, Any]]]:
        for place, record in records(unit):
            try:
                if isinstance(record, Bad):
                    raise UnfitError(record.reason)
                said, columns = split_record(record, self.column)
                text = self._text(said)
                if self.check is not None and (reason := self.check(columns)):
                    raise UnfitError(reason)
            except UnfitError as unfit:
                bad.note(place, Bad(str(unfit)))
                continue
            yield said, text, columns

    def _text(self, said: Said) -> str:
        if isinstance(said, str) and not self.chat:
            return said
        if self.template is None:
            raise UnfitError("it is a conversation, and the tokenizer has no chat template: name one by template")
        messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
        written = self.template.prompt(messages)
        if isinstance(written, Bad):
            raise UnfitError(written.reason)
        return written


def split_record(record: Record, column: str | None) -> tuple[Said, dict[str, Any]]:
    """A record's prompt, and its other columns.

    Of a conversation the prompt is what stands before the assistant's last turn, if that comes last. Alpaca's `input`
    stands below its `instruction`.

    Raises:
        UnfitError: there is no prompt, or it is empty.
    """
    name = column or next((field for field in FIELDS if not is_empty(record.get(field))), None)
    if name is None or name not in record:
        wanted = column or " or ".join(FIELDS)
        raise UnfitError(f"no prompt: column {wanted} is missing or empty; it has: {', '.join(map(str, record))}")
    said, rest = record[name], {key: value for key, value in record.items() if key != name}
    if isinstance(said, list):
        return _messages(said, name), rest
    text = text_of(said, f"column {name!r}")
    if not text.strip():
        raise UnfitError(f"column {name!r} is empty")
    if name == "instruction" and not is_empty(record.get("input")):
        text = f"{text}\n{record['input']}"
    return text, rest


def _messages(turns: list[Any], column: str) -> list[dict[str, Any]]:
    messages = []
    for number, turn in enumerate(turns, 1):
        try:
            messages.append(message_of(turn, "train")[0])
        except UnfitError as unfit:
            raise UnfitError(f"turn {number} of {column}: {unfit}") from unfit
    if messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise UnfitError(f"column {column!r} has no turn to reply to")
    if not any(str(message["content"]).strip() for message in messages):
        raise UnfitError(f"column {column!r} holds {kind_of(turns)} of empty turns")
    return messages


def write_prompts(path: Path, units: list[Unit], encoder: PromptEncoder, on_bad: OnBadRecord) -> int:
    """All prompts into an Arrow file that is read by memory mapping; returns how many bad records were left out."""
    num_bad = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for unit in units:
            bad = BadRecords(unit, on_bad)
            for batch in bounded_batches(encoder.prompts(unit, bad), lambda prompt: len(prompt.ids)):
                texts = [json.dumps([prompt.said, prompt.columns], ensure_ascii=False, default=str) for prompt in batch]
                hashes = [text_hash(json.dumps(prompt.said).encode()) for prompt in batch]
                columns = [[prompt.ids for prompt in batch], texts, np.array(hashes, np.uint64)]
                writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
            num_bad += bad.count
    return num_bad


def merged(columns: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns of several records as lists, None where a record has not the column."""
    names = dict.fromkeys(name for one in columns for name in one)
    return {name: [one.get(name) for one in columns] for name in names}
