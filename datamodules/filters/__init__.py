"""What is good enough to be trained on, among texts; each filter takes out documents, and says why."""

from datamodules.filters.chain import Chain
from datamodules.filters.duplicates import DuplicateFilter, ExactDuplicates, NearDuplicates
from datamodules.filters.filter import Bounded, DocumentFilter, Text, TextFilter
from datamodules.filters.language import Language
from datamodules.filters.lines import Bullets, Ellipses, LineEnds, Phrases, ShortLines
from datamodules.filters.repetition import RepeatedLines, RepeatedRuns
from datamodules.filters.words import Alphabetic, StopWords, Symbols, WordLength, Words

__all__ = [
    "Alphabetic",
    "Bounded",
    "Bullets",
    "Chain",
    "DocumentFilter",
    "DuplicateFilter",
    "Ellipses",
    "ExactDuplicates",
    "Language",
    "LineEnds",
    "NearDuplicates",
    "Phrases",
    "RepeatedLines",
    "RepeatedRuns",
    "ShortLines",
    "StopWords",
    "Symbols",
    "Text",
    "TextFilter",
    "WordLength",
    "Words",
]
