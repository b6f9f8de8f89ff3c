"""The reference texts that a text has most in common with, without comparing it with all of them.

Texts become strings with a character for each word of the references; what no reference says is one character. So runs
of words are slices, and rapidfuzz's bit-parallel longest common subsequence (Hyyrö, "Bit-Parallel LCS-length
Computation Revisited", 2004) runs over words as it does over characters.
"""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain, repeat

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
"""Chinese, Japanese and Korean characters count as words."""
UNKNOWN = "\0"  # a word that no reference has
RUN = 2  # words; texts are compared where they share rare runs of so many
MOST_OWNERS = 32  # runs that more references share say little about which one it is, and cost much
COMPARED = 8  # references that share the most


class Coder:
    """Words to characters; grows with the references."""

    def __init__(self) -> None:
        self._characters: dict[str, str] = {}

    def learn(self, text: str) -> str:
        """A reference as a string of words."""
        words = WORD.findall(text.lower())
        for word in words:
            if word not in self._characters:
                number = len(self._characters) + 1
                self._characters[word] = chr(number if number < 0xD800 else number + 0x800)  # over the surrogates
        return "".join(map(self._characters.__getitem__, words))

    def code(self, text: str) -> str:
        """A text as a string of words."""
        return "".join(map(self._characters.get, WORD.findall(text.lower()), repeat(UNKNOWN)))


def runs(coded: str, length: int, step: int = 1) -> set[str]:
    """All runs of so many words, or those that begin at every `step`-th word."""
    return {coded[i : i + length] for i in range(0, len(coded) - length + 1, step)}


class Nearest:
    """Finds the reference that shares the longest subsequence of words with a text.

    Only the `COMPARED` references that share most of the text's rarer pairs of words are looked at: a reference that
    has 0.7 of its words in common, in order, nearly always shares some.

    Args:
        references: coded.
    """

    def __init__(self, references: Iterable[str]) -> None:
        self.references = list(dict.fromkeys(references))
        self._owners: dict[str, list[int]] = {}
        for number, reference in enumerate(self.references):
            for run in runs(reference, RUN):
                owners = self._owners.setdefault(run, [])
                if len(owners) <= MOST_OWNERS:
                    owners.append(number)
        for run, owners in self._owners.items():
            if len(owners) > MOST_OWNERS:
                self._owners[run] = []

    def rouge_l(self, text: str) -> float:
        """ROUGE-L's F-measure (Lin, 2004) with the nearest reference, from 0 to 1.

        Args:
            text: coded.
        """
        from rapidfuzz.distance.LCSseq import similarity

        owners = filter(None, map(self._owners.get, runs(text, RUN)))
        shared = Counter(chain.from_iterable(owners))
        return max(
            (
                2 * similarity(text, self.references[number]) / (len(text) + len(self.references[number]))
                for number, _ in shared.most_common(COMPARED)
            ),
            default=0.0,
        )
