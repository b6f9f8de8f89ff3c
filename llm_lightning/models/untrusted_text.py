"""Texts of data and of models, as tokens that are only text.

Whoever writes `<|im_end|>` in a text must not end a turn by it: a policy would write the judge's next turn, with a
verdict to its liking. Which tokens such a text becomes, the tokenizer itself is asked, so that spellings that its
normalizer makes equal are found too. The text is cut in the middle of each, and the parts are encoded one by one: it
stays the same text, in other tokens. A text without any is encoded in one piece, as in training.
"""

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

THOUGHTS = ("<think>", "</think>")
"""Models write these as a part of their completions."""

FIRST_MARK, LAST_MARK = 0xF0000, 0xFFFFD
"""Characters that Unicode gives no meaning to: one that is in no text stands where it is cut."""


class UntrustedText:
    """Encodes texts that must not become control tokens.

    Control tokens are the special ones, and those others of the vocabulary's added tokens that the chat template
    writes, but for `<think>`. The unknown token is none, as any text may hold what a vocabulary lacks.

    Args:
        tokenizer: a fast one of transformers.

    Raises:
        TypeError: it is not fast, and so does not say where in a text its tokens stand.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.is_fast:
            raise TypeError(f"{type(tokenizer).__name__} is no fast tokenizer (it has no tokenizer.json)")
        self.tokenizer = tokenizer

    def conversation(
        self, messages: Sequence[dict[str, Any]], *, reply: bool, tools: Sequence[dict[str, Any]] | None = None
    ) -> list[int]:
        """As the chat template writes it; with `reply` up to where the assistant's next turn begins.

        Args:
            messages: each a mapping, as chat templates take them.
            reply: whether the assistant is to go on.
            tools: JSON schemas of what it may call.
        """
        said = str(messages) + str(tools)
        mark = next(one for one in map(chr, range(FIRST_MARK, LAST_MARK)) if repr(one)[1:-1] not in said)
        marked, schemas = (_each_text(one, lambda text: mark.join(self._parts(text))) for one in (messages, tools))
        written = self.tokenizer.apply_chat_template(marked, tools=schemas, tokenize=False, add_generation_prompt=reply)
        return self._ids(written.split(mark))

    def text(self, text: str, num_trusted: int = 0) -> list[int]:
        """A plain text without a frame.

        Args:
            text: what is encoded.
            num_trusted: so many characters at its beginning may hold control tokens.
        """
        return self._ids(self._parts(text, num_trusted))

    def document(self, text: str, num_trusted: int = 0) -> list[int]:
        """A plain text with the tokens that the tokenizer puts around it; see `text`."""
        parts = self._parts(text, num_trusted)
        if len(parts) == 1:
            return list(self.tokenizer(parts[0]).input_ids)
        before, after = self._frame
        return [*before, *self._ids(parts), *after]

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Tokens that no text may become."""
        tokenizer = self.tokenizer
        template = str(tokenizer.chat_template or "")
        found = {
            number
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.content not in THOUGHTS and (token.special or _is_written(token.content, template))
        }
        ends = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
        return frozenset(found - ({tokenizer.unk_token_id} - ends))

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        bare, framed = self.tokenizer("a", add_special_tokens=False).input_ids, self.tokenizer("a").input_ids
        start = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
        return framed[:start], framed[start + len(bare) :]

    def _ids(self, parts: list[str]) -> list[int]:
        return [number for part in self._encoded(parts) for number in part.ids]

    def _encoded(self, texts: list[str]) -> list[Any]:
        return list(self.tokenizer(texts, add_special_tokens=False).encodings) if texts else []

    def _parts(self, text: str, num_trusted: int = 0) -> list[str]:
        """The text in parts of which none holds a control token, each to be encoded by itself."""
        parts = [(text, num_trusted)]
        while True:
            encoded = self._encoded([part for part, _ in parts])
            pairs = zip(parts, encoded, strict=True)
            smaller = [piece for part, encoding in pairs for piece in self._cut(*part, encoding)]
            if smaller == parts:
                return [part for part, _ in parts]
            parts = smaller

    def _cut(self, text: str, num_trusted: int, encoding: Any) -> list[tuple[str, int]]:
        """The text cut in each control token, with how much of each piece may hold some."""
        pieces, begin = [], 0
        for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if number not in self.control_ids or end <= max(start, num_trusted):
                continue
            middle = max(start + (end - start) // 2, num_trusted)
            pieces.append((text[begin:middle], max(0, num_trusted - begin)))
            # A single character that is a control token by itself has no parts: it is left out.
            begin = middle if end - start > 1 else end
        return [*pieces, (text[begin:], max(0, num_trusted - begin))]


def _is_written(token: str, template: str) -> bool:
    """Whether a template writes a token that no text needs: vocabularies have added words and blanks as well."""
    return token in template and not re.fullmatch(r"[\w\s]*", token)


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """The same lists and dictionaries with other texts in them."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_each_text(key, change): _each_text(one, change) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_each_text(one, change) for one in value]
    return value
