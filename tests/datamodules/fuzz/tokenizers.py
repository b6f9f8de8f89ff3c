"""The tokenizer of the cases."""

from pathlib import Path

from tests.datamodules.chat_tokenizers import chat_tokenizer


def save_tokenizer(folder: Path) -> str:
    """A byte-level tokenizer with the tokens of ChatML; returns its folder."""
    chat_tokenizer("smollm2").save_pretrained(folder / "tokenizer")
    return str(folder / "tokenizer")
