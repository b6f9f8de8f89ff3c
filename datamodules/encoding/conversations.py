"""From conversations to token ids, and which of them are in the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from datamodules.encoding.batches import bounded_batches
from datamodules.records.conversations import Conversation, conversation_of
from datamodules.records.record_source import ChatRecord
from datamodules.sources.bad_records import BadRecords
from datamodules.sources.formats import records
from datamodules.sources.units import Bad, Unit
from datamodules.storage.hashing import text_hash
from datamodules.storage.shards import Document, token_dtype
from datamodules.templates.chat_template import ChatTemplate
from datamodules.templates.probe import Rendered

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


class WrittenConversation(NamedTuple):
    """A document of a conversation, and the hash that decides its side of a split."""

    rendered: Rendered
    hash: int


class ChatEncoder:
    """Turns conversations into documents.

    Args:
        tokenizer: a copy of its own.
        template: fields of a `ChatTemplate`.
    """

    def __init__(self, tokenizer: Tokenizer, **template: Any) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate(**template)

    @cached_property
    def dtype(self) -> np.dtype:
        """Of token ids on disk."""
        return token_dtype(self.tokenizer)

    def settings(self) -> dict[str, Any]:
        """What another process needs to make the same encoder around the same tokenizer; JSON."""
        return asdict(self.template)

    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        """The unit's documents, streaming; the loss is on the replies of each."""
        for batch in bounded_batches(self.written(unit, bad), lambda one: len(one.rendered.text)):
            texts = [one.rendered.text for one in batch]
            encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
            for (rendered, split_hash), encoding in zip(batch, encodings, strict=True):
                ids = np.array(encoding.ids, self.dtype)
                trained, num_bytes = trained_tokens(encoding, rendered), len(rendered.text.encode())
                yield Document(ids, trained, num_bytes, split_hash, prompt_tokens(encoding, rendered))

    def written(self, unit: Unit, bad: BadRecords) -> Iterator[WrittenConversation]:
        """The unit's conversations as the template writes them."""
        for place, record in records(unit):
            conversation = self._conversation(record, unit)
            rendered = conversation if isinstance(conversation, Bad) else self.template.render(conversation)
            if isinstance(rendered, Bad):
                bad.note(place, rendered)
                continue
            assert isinstance(conversation, Conversation)
            bad.unread.update(self.template.unread(conversation.messages, conversation.tools))
            split_hash = _split_hash(conversation)
            yield from (WrittenConversation(document, split_hash) for document in rendered)

    def read(self, unit: Unit) -> Iterator[ChatRecord]:
        """The unit's conversations, without those that cannot be read."""
        for _, record in records(unit):
            conversation = self._conversation(record, unit)
            if isinstance(conversation, Conversation):
                assert not isinstance(record, Bad)
                yield ChatRecord(record, conversation.messages, None, _split_hash(conversation))

    def refuses(self, messages: list[dict[str, Any]], rejected: str | None) -> str | None:
        """Why these messages cannot be trained on; None where they can."""
        conversation = conversation_of({"messages": messages}, "messages", None, self.template.reasoning)
        rendered = conversation if isinstance(conversation, Bad) else self.template.render(conversation)
        return rendered.reason if isinstance(rendered, Bad) else None

    def _conversation(self, record: Any, unit: Unit) -> Conversation | Bad:
        if isinstance(record, Bad):
            return record
        return conversation_of(record, unit.shape, unit.columns, self.template.reasoning)


def trained_tokens(encoding: Encoding, rendered: Rendered) -> np.ndarray:
    """(n,) bool: the loss mask: tokens of which every character lies in a trained span.

    A token that spans the end of a prompt and the start of a reply has no loss: when the model replies, the prompt is
    complete.
    """
    trained = np.zeros(len(encoding.ids), bool)
    for start, end in rendered.spans:
        first = _token_within(encoding, start, end)
        if first is None:
            continue
        trained[first : _token_from(encoding, end, len(rendered.text))] = True
    trained[:1] = False  # nothing predicts the first token
    return trained


def prompt_tokens(encoding: Encoding, rendered: Rendered) -> int:
    """Number of tokens before the last reply; one that reaches into it counts, as in `trained_tokens`."""
    first = _token_within(encoding, rendered.prompt, len(rendered.text))
    return len(encoding.ids) if first is None else first


def _token_within(encoding: Encoding, start: int, end: int) -> int | None:
    """The first token that stands for these characters and for none before them."""
    first = _token_from(encoding, start, end)
    if first is None:
        return None
    begins, _ = encoding.token_to_chars(first) or (start, end)
    return first + 1 if begins < start else first


def _token_from(encoding: Encoding, start: int, end: int) -> int | None:
    """The first token that stands for one of these characters; a tokenizer may drop some."""
    found = (encoding.char_to_token(place) for place in range(start, end))
    return next((token for token in found if token is not None), None)


def _split_hash(conversation: Conversation) -> int:
    """Of what the first user says: copies of a question fall on the same side of a split, however answered."""
    said = (message.get("content") or "" for message in conversation.messages if message["role"] == "user")
    return text_hash((next(said, None) or str(conversation.messages)).encode())
