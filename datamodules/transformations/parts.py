"""Tokens of parts of a text: what stands at a seam is tokenized as it is where one part is all that is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datamodules.encoding.tokenizer import bare
from datamodules.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ANCHORS = ("", "☺")
"""What stands before a text while it is tokenized, and is taken away again: nothing, or something for tokenizers that
put a space before every text, and so before every part of one (SentencePiece). It merges with nothing."""

PROBES = (" def f(x):\n\treturn x  # a,b\r\n\n", "  Ein Schluß — 日本, né 🫀! ", "x='<|a|>'\n")
LONGEST_CHARACTER = 4  # bytes in UTF-8, each of which may be a token
BROKEN = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no character are read as


class PartTokenizer:
    """From text to ids and back, so that the ids of a text's parts, one after the other, are read as the text.

    Args:
        tokenizer: the user's; a copy is used.

    Raises:
        DataError: no way of asking this tokenizer does that.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = bare(tokenizer)
        self.tokenizer.encode_special_tokens = True  # a text that spells a control token is text
        for anchor in ANCHORS:
            self.anchor = anchor
            self.anchor_ids: list[int] = self.tokenizer.encode(anchor, add_special_tokens=False).ids
            if all(self._keeps(text) for text in PROBES):
                return
        raise DataError(
            "fim: this tokenizer does not give a text back from the tokens of its parts (it lowers case, or changes"
            " spaces), so that no part would be what the model sees when it fills in; take one of bytes, such as"
            " those of StarCoder, Qwen, DeepSeek, SmolLM, or the one that is trained where none is named"
        )

    def _keeps(self, text: str) -> bool:
        cuts = range(len(text) + 1)
        return all(self.decode([*self.encode(text[:cut]), *self.encode(text[cut:])]) == text for cut in cuts)

    def encode(self, text: str) -> list[int]:
        """Ids of a part of a text, whatever stands before it."""
        ids = self.tokenizer.encode(self.anchor + text, add_special_tokens=False).ids
        return ids[len(self.anchor_ids) :]

    def decode(self, ids: list[int]) -> str:
        """The text of ids, as it stands inside of a longer one."""
        text = self.tokenizer.decode([*self.anchor_ids, *ids], skip_special_tokens=False)
        return text[len(self.anchor) :]

    def whole_characters(self, ids: list[int]) -> slice:
        """Where in ids of a piece of a text whole characters are: a piece may begin and end inside of one."""
        if BROKEN not in self.decode(ids):
            return slice(0, len(ids))
        most = min(LONGEST_CHARACTER, len(ids) + 1)
        ways = [(start, len(ids) - end) for start in range(most) for end in range(most) if start + end <= len(ids)]

        def broken(way: tuple[int, int]) -> tuple[int, int]:
            return self.decode(ids[slice(*way)]).count(BROKEN), len(ids) - (way[1] - way[0])

        return slice(*min(ways, key=broken))
