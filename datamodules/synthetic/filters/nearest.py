"""The reference texts that a text has most in common with, without comparing it with all of them.

On texts with a character for each word (see `Coder`), rapidfuzz's bit-parallel longest common subsequence (Hyyrö,
"Bit-Parallel LCS-length Computation Revisited", 2004) runs over words as it does over characters.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import chain

from datamodules.records.words import runs

RUN = 2  # words; texts are compared where they share rare runs of so many
MOST_OWNERS = 32  # runs that more references share say little about which one it is, and cost much
COMPARED = 8  # references that share the most


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
