"""Texts as strings with a character for each word: runs of words are slices of them.

Texts are compared with references: what no reference says is one character, whatever it is.
"""

import re
from itertools import repeat

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
"""Chinese, Japanese and Korean characters count as words."""
UNKNOWN = "\0"  # a word that no reference has
# Of bytes of ASCII, what `WORD` finds there in lower case, and blanks.
_LETTERS = bytes(ord(chr(byte).lower()) if byte < 128 and chr(byte).isalnum() else ord(" ") for byte in range(256))


class Coder:
    """Words to characters; grows with the references."""

    def __init__(self) -> None:
        self._characters: dict[str, str] = {}

    def learn(self, text: str) -> str:
        """A reference as a string of words."""
        words = words_of(text)
        for word in words:
            if word not in self._characters:
                number = len(self._characters) + 1
                self._characters[word] = chr(number if number < 0xD800 else number + 0x800)  # over the surrogates
        return "".join(map(self._characters.__getitem__, words))

    def code(self, text: str) -> str:
        """A text as a string of words."""
        return "".join(map(self._characters.get, words_of(text), repeat(UNKNOWN)))


def words_of(text: str) -> list[str]:
    """The words in lower case, without what stands between them."""
    words: list[str] = []
    for line in text.splitlines():
        # Most lines are ASCII, for which there is a way that is four times as fast.
        found = line.encode().translate(_LETTERS).decode().split() if line.isascii() else WORD.findall(line.lower())
        words += found
    return words


def runs(coded: str, length: int, step: int = 1) -> set[str]:
    """All runs of so many words, or those that begin at every `step`-th word."""
    return {coded[i : i + length] for i in range(0, len(coded) - length + 1, step)}
