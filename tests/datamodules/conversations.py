"""What the tests of instruction data share: one conversation, and the way from a record to it."""

from datamodules.records.conversations import Conversation, conversation_of, detect_shape
from datamodules.sources.units import Bad
from tests.datamodules.conftest import EMOJI, SPANISH

SYSTEM = {"role": "system", "content": "Sé breve."}
USER = {"role": "user", "content": SPANISH}
ASSISTANT = {"role": "assistant", "content": EMOJI}


def convert(record: dict, columns: dict[str, str] | None = None, reasoning: str = "train") -> Conversation | Bad:
    return conversation_of(record, detect_shape([record], columns, "a.jsonl").name, columns, reasoning)


def said(record: dict, **options) -> list[tuple[str, str]]:
    conversation = convert(record, **options)
    assert isinstance(conversation, Conversation), conversation
    return [(message["role"], message["content"]) for message in conversation.messages]
