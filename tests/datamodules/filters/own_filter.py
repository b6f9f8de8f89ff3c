"""A user's own filter, which other processes import."""

from dataclasses import dataclass

from datamodules.filters.filter import DocumentFilter, Text


@dataclass(frozen=True)
class Mentions(DocumentFilter):
    """Drops documents that have a word."""

    word: str

    name = "mentions"

    def fault(self, text: Text) -> str:
        return f"with {self.word}" if self.word in text.words else ""
