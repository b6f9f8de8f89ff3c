"""Texts that are over once they have come to an answer."""

import re
from typing import Any

from torch import Tensor

from llm_lightning.errors import UserError
from llm_lightning.rollouts.sampler import STOP_EVERY


class StopAt:
    """Ends a text where a regular expression finds something in it.

    Args:
        pattern: Python's syntax. It is tried while the text grows: to read a number whole it has to ask for what stands
            behind it, as in `answer is \\d+\\D`.
        tokenizer: of the texts.
        most_at_once: tokens that a forward pass writes of a text, with drafts.

    Raises:
        UserError: the pattern is no regular expression, or finds something in an empty text.
    """

    def __init__(self, pattern: str, tokenizer: Any, most_at_once: int = 1) -> None:
        try:
            self._search = re.compile(pattern, re.DOTALL).search
        except re.error as error:
            raise UserError(f"stop_at={pattern!r} is no regular expression: {error}.") from error
        if self._search(""):
            raise UserError(f"stop_at={pattern!r} finds something in an empty text, so that nothing would be written.")
        self._tokenizer, self._unasked = tokenizer, STOP_EVERY + most_at_once - 1

    def is_over(self, _: int, tokens: Tensor) -> bool:
        """See `Sampler.stop`."""
        return self._search(self._text(tokens)) is not None

    def cut(self, tokens: Tensor) -> Tensor | None:
        """The first tokens with which the pattern finds something; None where it finds nothing in all of them."""
        if not self.is_over(0, tokens):
            return None
        first = max(1, len(tokens) - self._unasked)  # before that it was looked for in vain
        return next(tokens[:n] for n in range(first, len(tokens) + 1) if self.is_over(0, tokens[:n]))

    def _text(self, tokens: Tensor) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)
