"""From records to prompts: what the model is asked, and the columns that a reward needs to judge its completion."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from datamodules.encoding.batches import bounded_batches
from datamodules.records.fields import Fields
from datamodules.records.preferences import first_answer, is_pair, prompt_of_pair
from datamodules.records.prompt_turns import (
    MAIN,
    Message,
    is_dialogue,
    prompt_turns,
    question_text,
    read_turn,
    with_system,
)
from datamodules.records.shapes import PROMPT_SHAPES, Columns, required
from datamodules.records.turns import UnfitError, tools_of
from datamodules.sources.bad_records import BadRecords, OnBadRecord
from datamodules.sources.formats import records
from datamodules.sources.surrogates import is_encodable
from datamodules.sources.units import Bad, Record, Unit
from datamodules.storage.hashing import text_hash
from datamodules.templates.chat_template import ChatTemplate
from llm_lightning_safety.json_values import json_default

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Said = str | list[Message]  # a text, or the messages of a conversation

SCHEMA = pa.schema([("ids", pa.list_(pa.int32())), ("record", pa.string()), ("hash", pa.uint64())])


class Prompt(NamedTuple):
    """A prompt.

    Args:
        ids: (n,) token ids.
        said: the text or the messages, as the data has them.
        columns: the record's other columns.
        read: the columns that made the prompt, the one that it stands in first.
        number: of the prompt among all.
    """

    ids: np.ndarray
    said: Said
    columns: dict[str, Any]
    read: list[str]
    number: int = -1


@dataclass(frozen=True)
class PromptEncoder:
    """Turns records into prompts.

    Args:
        tokenizer: a copy of its own.
        prefix: ids before a plain text.
        template: writes conversations down; None where there is no chat template.
        chat: whether a text is what a user says, to be written down by the template.
        check: from a record's other columns to why rewards could not judge a completion of it, or None.
    """

    tokenizer: Tokenizer
    prefix: list[int]
    template: ChatTemplate | None
    chat: bool
    check: Callable[[dict[str, Any]], str | None] | None = None

    def prompts(self, unit: Unit, bad: BadRecords) -> Iterator[Prompt]:
        """The unit's prompts, streaming; its `shape` and `columns` say how they are read."""
        self.tokenizer.encode_special_tokens = False
        for batch in bounded_batches(self._written(unit, bad), lambda one: len(one[1])):
            encodings = self.tokenizer.encode_batch_fast([text for _, text in batch], add_special_tokens=False)
            prefix = [] if self.chat else self.prefix
            for (asked, _), encoding in zip(batch, encodings, strict=True):
                # As the model sees them: a reward model reads them too.
                others = asked.others | ({"tools": asked.tools} if asked.tools else {})
                yield Prompt(np.array([*prefix, *encoding.ids], np.int32), asked.said, others, asked.read)

    def _written(self, unit: Unit, bad: BadRecords) -> Iterator[tuple[Asked, str]]:
        for place, record in records(unit):
            try:
                if isinstance(record, Bad):
                    raise UnfitError(record.reason)
                asked = prompt_of(record, unit.shape, unit.columns)
                _check_encodable(asked.others)
                text = self._text(asked)
                if self.check is not None and (reason := self.check(asked.others)):
                    raise UnfitError(reason)
            except (UnfitError, RecursionError) as unfit:
                deep = isinstance(unfit, RecursionError)
                bad.note(place, Bad("JSON nested too deeply" if deep else str(unfit)))
                continue
            if self.chat and self.template is not None:
                bad.unread.update(self.template.unread(asked.messages, asked.tools))
            yield asked, text

    def _text(self, asked: Asked) -> str:
        if not self.chat:
            return self._plain(asked)
        assert self.template is not None
        written = self.template.prompt(asked.messages, asked.tools)
        if isinstance(written, Bad):
            raise UnfitError(written.reason)
        return written

    def _plain(self, asked: Asked) -> str:
        """A text as it stands."""
        if asked.text is not None and not asked.around:
            return asked.text
        found = (
            f"its column {asked.around[0]!r} has no place in a plain text" if asked.around else "it is a conversation"
        )
        if self.template is None:
            raise UnfitError(f"{found}, and the tokenizer has no chat template: name one by template")
        raise UnfitError(f"{found}: leave out chat=false")


def _check_encodable(columns: dict[str, Any]) -> None:
    """Rewards compare these columns with texts, so that half a character is not replaced here as in a prompt."""
    for name, value in columns.items():
        if not is_encodable([name, value]):
            raise UnfitError(f"column {name!r} holds half a character (a lone surrogate), which UTF-8 cannot write")


class Asked(NamedTuple):
    """What a record asks.

    Args:
        text: what the user says, where the record holds a text; a system's turn and a history are not in it.
        messages: as chat templates take them.
        tools: JSON schemas.
        others: the columns beside the one that the prompt stands in.
        around: the columns that are no part of the text: a system's, a history, tools.
        read: the columns that made the prompt, the one that it stands in first.
    """

    text: str | None
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    others: dict[str, Any]
    around: list[str]
    read: list[str]

    @property
    def said(self) -> Said:
        """The text where that is all, else the messages."""
        alone = {"role": "user", "content": self.text}
        return self.text if self.text is not None and self.messages == [alone] else self.messages


def prompt_of(record: Record, shape: str, columns: Columns | None) -> Asked:
    """What the record asks, by the same rules as in fine-tuning and reward modelling (`prompt_turns`).

    Args:
        shape: of `PROMPT_SHAPES`, as `detect_shape` found it for the set. Where the record has no prompt there, the
            first shape is taken that it has one for.

    Raises:
        UnfitError: there is no prompt, or it cannot be read.
    """
    fields, main = Fields(record, columns), MAIN[shape]
    if not _asks(fields, shape):
        others = () if columns else PROMPT_SHAPES  # what is mapped is meant
        shape = next((name for name in others if all(map(fields.non_empty, required(name, PROMPT_SHAPES)))), "")
    if not shape:
        wanted = " or ".join(
            fields.names_of(main) if columns else dict.fromkeys(name for name in MAIN.values() if name != "chosen")
        )
        raise UnfitError(f"no prompt: column {wanted} is missing or empty; it has: {', '.join(map(str, record))}")
    return _asked(fields, shape)


def _asks(fields: Fields, shape: str) -> bool:
    """Whether the record has what a prompt of this shape is made of, with or without a response."""
    main = MAIN[shape]
    if is_pair(shape) and not fields.columns_of(first_answer(shape)):
        return False
    if shape == "self-instruct" and not fields.non_empty("instances"):
        return False
    is_task = main == "instruction" and fields.columns_of(main) and fields.non_empty("input")
    return bool(fields.non_empty(main) or is_task)


def _asked(fields: Fields, shape: str) -> Asked:
    turns = prompt_of_pair(fields, shape) if is_pair(shape) else list(prompt_turns(fields, shape))
    messages = with_system(fields, [read_turn(turn)[0] for turn in turns])
    column = fields.column(MAIN[shape])
    if not messages:
        raise UnfitError(f"column {column!r} has no turn to reply to")
    if not any(str(message["content"]).strip() for message in messages):
        raise UnfitError(f"column {column!r} holds a list of empty turns")
    tools = tools_of(fields.optional("tools"))
    asks = set(fields.columns_of(MAIN[shape]))
    others = {name: value for name, value in fields.record.items() if name not in asks}
    around = [name for field in ("system", "history", "tools") for name in fields.non_empty(field)]
    text = None if shape == "whole-pair" or is_dialogue(fields, shape) else question_text(fields, shape)
    return Asked(text, messages, tools, others, around, _made_of(fields, MAIN[shape]))


def _made_of(fields: Fields, main: str) -> list[str]:
    columns = list(dict.fromkeys([*fields.non_empty(main), *fields.read]))
    said = fields.record.get(columns[0])
    if isinstance(said, list) and len(said) > 1 and all(isinstance(one, str) for one in said):
        columns[0] += f" (the first of {len(said)} texts)"
    return columns


def write_prompts(path: Path, unit: Unit, encoder: PromptEncoder, on_bad: OnBadRecord) -> dict[str, Any]:
    """A unit's prompts into an Arrow file that is read by memory mapping.

    Returns:
        `num_bad`, how many records were left out, `first_bad`, what is wrong with the first of them, and `unread`, how
        many records have a key in their turns of which the chat template writes nothing, by the key.
    """
    bad = BadRecords(unit, on_bad)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for batch in bounded_batches(encoder.prompts(unit, bad), lambda prompt: len(prompt.ids)):
            texts = [
                json.dumps([one.said, one.columns, one.read], ensure_ascii=False, default=json_default) for one in batch
            ]
            hashes = [text_hash(json.dumps(prompt.said).encode()) for prompt in batch]
            columns = [[prompt.ids for prompt in batch], texts, np.array(hashes, np.uint64)]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
    return {"num_bad": bad.count, "first_bad": bad.first, "unread": dict(bad.unread)}


def merged(columns: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns of several records as lists, None where a record has not the column."""
    names = dict.fromkeys(name for one in columns for name in one)
    return {name: [one.get(name) for one in columns] for name in names}
