"""Control tokens: what opens and ends turns, calls and results, and that no text of a record may spell."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from datamodules.templates.skeleton import TOOLS, Part

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer

# Thoughts are written with tokens that some vocabularies call special, and prose may speak of them.
THINKING = ("<think>", "</think>")
UNICODE_ONLY = {"NFC", "NFD", "NFKC", "NFKD", "StripAccents"}  # normalizers that leave ASCII as it is
NOT_IN_TEXT = "\0"


class Spelled(NamedTuple):
    """A text that spells a control token."""

    part: Part
    token: str
    is_special: bool
    as_written: bool


class ControlTokens:
    """Finds control tokens in texts, as they stand there or as the tokenizer's normalizer makes them (NFKC makes
    `<|end|>` of full-width letters).

    Args:
        special: the tokenizer's special tokens.
        turns: its other tokens with which the template writes turns.
        tags: its other tokens with which the template writes calls, results and tools. They are text in what the
            assistant and the system say, since many sets write calls as text.
        normalizer: of the tokenizer, as JSON; empty for none.
    """

    def __init__(self, special: Sequence[str], turns: Sequence[str], tags: Sequence[str], normalizer: str = "") -> None:
        self.special = set(special)
        self.normalizer = _normalizer(normalizer)
        self.ascii_stays = _kinds(normalizer) <= UNICODE_ONLY
        self.strict = self._pattern([*special, *turns])
        self.all = self._pattern([*special, *turns, *tags])

    def spelled(self, parts: Sequence[Part], roles: Sequence[str]) -> Spelled | None:
        """The first part that spells a control token.

        Args:
            roles: who speaks, for each turn.
        """
        together = NOT_IN_TEXT.join(part.text for part in parts)
        if not any(self.all.search(text) for text in self._forms(together)):
            return None
        for part in parts:
            says_itself = part.kind in ("content", "reasoning") and roles[part.turn] not in ("user", "tool")
            pattern = self.strict if says_itself else self.all
            for number, text in enumerate(self._forms(part.text)):
                if found := pattern.search(text):
                    return Spelled(part, found[0], found[0] in self.special, as_written=number == 0)
        return None

    def sequence(self, text: str) -> list[str]:
        """The control tokens in a text that a template wrote, in their order."""
        return [token for form in self._forms(text) for token in self.strict.findall(form)]

    def joined(self, parts: Iterable[Part], found: Sequence[str], expected: Sequence[str]) -> tuple[Part, str] | None:
        """The part that makes a control token together with what stands beside it; None where none can have.

        Args:
            found: the tokens in the rendering.
            expected: those in the rendering of the skeleton.
        """
        fresh = [token for token in dict.fromkeys(found) if found.count(token) > expected.count(token)]
        for part in parts:
            for text in self._forms(part.text.strip()):
                for token in fresh:
                    if text and (text in token or _overlap(text, token)):
                        return part, token
        return None

    def _forms(self, text: str) -> list[str]:
        if self.normalizer is None or (self.ascii_stays and text.isascii()):
            return [text]
        return [text, self.normalizer.normalize_str(text)]

    def _pattern(self, tokens: Sequence[str]) -> re.Pattern[str]:
        wanted = {token for token in tokens if token and token not in THINKING}
        if self.normalizer is not None:
            wanted |= {form for form in map(self.normalizer.normalize_str, wanted) if is_mark(form)}
        longest_first = sorted(wanted, key=lambda token: (-len(token), token))
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def is_mark(token: str) -> bool:
    """Whether a token is of a kind that nobody writes by chance, such as `<|user|>`: neither a word nor punctuation."""
    return len(token) > 2 and any(map(str.isalnum, token)) and not all(c.isalnum() or c.isspace() for c in token)


def where(part: Part) -> str:
    """A part's place, for messages."""
    if part.turn == TOOLS:
        return "a tool"
    named = {"call": " in its call", "name": " in its name", "reasoning": " in its reasoning"}.get(part.kind, "")
    return f"turn {part.turn + 1}{named}"


def normalizer_of(tokenizer: Tokenizer) -> str:
    """The tokenizer's normalizer as JSON; empty for none."""
    return tokenizer.normalizer.__getstate__().decode() if tokenizer.normalizer is not None else ""


def _overlap(text: str, token: str) -> bool:
    """Whether the text ends as the token begins, or begins as it ends."""
    return any(text.endswith(token[:n]) or text.startswith(token[-n:]) for n in range(1, len(token)))


def _normalizer(state: str) -> Normalizer | None:
    if not state:
        return None
    from tokenizers import normalizers

    made = normalizers.Sequence([])
    made.__setstate__(state.encode())
    return made


def _kinds(state: str) -> set[str]:
    if not state:
        return set()
    read = json.loads(state)
    return {one["type"] for one in read.get("normalizers", [read])}
