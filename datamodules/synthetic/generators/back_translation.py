"""Back-translation: a real question through another language and back."""

from typing import Any

from datamodules.synthetic.generators.base import Steps, check_template, fill, finished
from datamodules.synthetic.generators.paraphrase import Paraphrase, reworded
from datamodules.synthetic.seeds import Seeds

TEMPLATE = """\
Translate the following into {language}. Write the translation alone.

{text}"""


class BackTranslation(Paraphrase):
    """Translates a record's last question into another language and back, which rewords it (Sennrich et al.,
    arXiv:1511.06709); the response stays the real one.

    Args:
        pivot: the language between.
        language: the language of the data.
        template: what is asked; `{language}` and `{text}` stand for the target and the text.
        kwargs: see `RecordGenerator`.
    """

    def __init__(
        self, pivot: str = "Spanish", language: str = "English", template: str = TEMPLATE, **kwargs: Any
    ) -> None:
        super().__init__(template, **kwargs)
        check_template(self, template, "language")
        self.pivot = pivot
        self.language = language

    def steps(self, number: int, seeds: Seeds) -> Steps:
        """Ask for the translation, then for the one back."""
        seed = self.seed_of(number, seeds)
        text = seed.question
        for step, language in enumerate((self.pivot, self.language)):
            [reply] = yield [self.ask(fill(self.template, language=language, text=text), number, step)]
            text = finished(reply)
        return [reworded(seed, text)]
