"""Responses that are not fit to train on, seen from their form alone."""

import re
from collections.abc import Iterator

from datamodules.synthetic.candidate import Candidate
from datamodules.synthetic.filters.filter import Context, Filter, Scores, Threshold

SELF = re.compile(
    r"\bas an? (?:ai(?:,| i\b| (?:chatbot|assistant|system|(?:language )?model)\b)|(?:large )?language model\b)"
    r"|\bi(?:'m| am) (?:just |only )?an? (?:ai|(?:large )?language model)\b"
    r"|\bcomo (?:una? )?(?:ia|inteligencia artificial|modelo de lenguaje)\b"
)
SELF_MARKS = ("language model", "an ai", "an artificial", "como ia", "una ia", "inteligencia", "modelo de lenguaje")
"""One of these is in each of them: spares most texts the search."""
APOLOGY = re.compile(
    r"(?:i|i'm|i am|we are) (?:very |so )?(?:sorry|afraid|apologi[sz]e)\b"
    r"[^.!?]{0,40}\b(?:can't|can ?not|unable|not able|won't)\b"
    r"|(?:sorry|unfortunately)?,?\s?(?:but )?i (?:can't|can ?not|am unable to|am not able to|won't)"
    r" (?:assist|help|fulfil|comply|provide|answer|do that|generate|complete)"
    r"|lo siento,? (?:pero )?no puedo\b"
)
"""Only at the beginning: people apologize in letters and dialogues."""

BLANK = re.compile(
    r"\{\{\s*\w[\w .]*\}\}"
    r"|[\[<](?:your|insert|add|enter|name of|company|recipient|date|tu|su|nombre|inserta)\b[^\]>\n]{0,40}[\]>]",
)
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
FENCE = re.compile(r"^\s*```", re.MULTILINE)
HANGING = re.compile(
    r"(?:[,;(\[{\u2013\u2014]|\b(?:the|an|and|or|of|with|because|which|whose|y|o|que|de|el|los|las|una|porque))$"
)
"""No sentence, list or line of code ends so. A missing full stop is no sign: half of all good responses have none."""

LOOPED_CHARACTER = re.compile(r"([^\s\-=_*.#~|+0])\1{29}")  # none of what rules, tables and numbers are made of
WORDS_OF_PIECE, FEWEST_PIECES, LOOPED = 4, 12, 0.4


class Format(Filter):
    """Drops what is empty, refused, unfinished, looped, or holds open code fences or blanks to be filled in.

    The score is 1 where one of these was found, and 0 else.
    """

    name = "format"

    def __init__(self) -> None:
        super().__init__(Threshold(max=0))

    def scores(self, batches: Iterator[list[Candidate]], context: Context) -> Iterator[Scores]:
        """One number a record: whether there is a fault."""
        for batch in batches:
            faults = [fault_of(candidate.prompt, candidate.answer) for candidate in batch]
            yield Scores.of((float(bool(fault)), fault) for fault in faults)


def fault_of(prompt: str, answer: str) -> str:
    """What is wrong, or an empty text."""
    answer = answer.strip()
    if not prompt.strip():
        return "empty prompt"
    if not answer:
        return "empty answer"
    lower = answer.lower().replace("\u2019", "'")
    if APOLOGY.match(lower) or (any(map(lower.__contains__, SELF_MARKS)) and SELF.search(lower)):
        return "refusal"
    if "```" in answer and len(FENCE.findall(answer)) % 2:
        return "open code fence"
    prose = CODE.sub("`", lower) if "`" in answer else lower
    if BLANK.search(prose) or "lorem ipsum" in lower:
        return "placeholder"
    if is_looped(answer):
        return "repetition"
    if HANGING.search(prose[-40:]):
        return "unfinished"
    return ""


def is_looped(text: str) -> bool:
    """Whether many of its runs of four words were there before, as where a model repeats itself to the end."""
    words = text.split()
    if max(map(len, words)) >= 30 and LOOPED_CHARACTER.search(text):
        return True
    count = len(words) - WORDS_OF_PIECE + 1
    if count < FEWEST_PIECES:
        return False
    pieces = set(zip(*(words[i:] for i in range(WORDS_OF_PIECE)), strict=False))
    return 1 - len(pieces) / count > LOOPED
