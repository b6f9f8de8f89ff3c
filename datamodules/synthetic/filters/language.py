"""Records in another language than is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from datamodules.errors import DataError
from datamodules.synthetic.candidate import Candidate
from datamodules.synthetic.filters.extra import needs
from datamodules.synthetic.filters.filter import Context, Filter, Scores, Threshold

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

READ = 200  # characters; more of them cost time and change next to nothing
SHORT = 40  # characters; so short an answer is read with its prompt


class Language(Filter):
    """Drops answers that are surely in a language that is not wanted.

    The score is how sure py3langid is that an answer is in another language, 0 where it sees a wanted one. Its model,
    naive Bayes over byte n-grams of 97 languages (Lui & Baldwin, "langid.py", 2012), comes with its package: nothing is
    downloaded. Where it is unsure, as of numbers and code, the record stays.

    Args:
        languages: ISO 639-1 codes.
        threshold: by default, drop where another language is more probable than not.

    Raises:
        DataError: py3langid is not installed, or does not know a language.
    """

    name = "language"

    def __init__(self, languages: Sequence[str], threshold: Threshold = Threshold(max=0.5)) -> None:  # noqa: B008
        super().__init__(threshold)
        needs("py3langid", "Language")
        self.languages = sorted(set(languages))
        if not self.languages or not set(self.languages) <= set(identifier().labels):
            raise DataError(
                f"filters: Language.languages is {list(languages)}; give ISO 639-1 codes such as en, es, zh"
            )

    def scores(self, batches: Iterator[list[Candidate]], context: Context) -> Iterator[Scores]:
        """One number a record: how sure it is that the language is another one."""
        model = identifier()
        for batch in batches:
            yield Scores.of(self._finding(model, candidate) for candidate in batch)

    def _finding(self, model: LanguageIdentifier, candidate: Candidate) -> tuple[float, str]:
        text = candidate.answer[:READ]
        if len(text) < SHORT:
            text = f"{candidate.prompt[:READ]}\n{text}"
        language, probability = model.classify(text)
        return (0.0, "") if language in self.languages else (probability, language)


@lru_cache(maxsize=1)
def identifier() -> LanguageIdentifier:
    """py3langid's model, with probabilities."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
