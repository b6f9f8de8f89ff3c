"""Paraphrase: a real question in other words, with its real response."""

from typing import Any

from datamodules.synthetic.generators.base import (
    Draft,
    Dropped,
    RecordGenerator,
    Steps,
    check_template,
    fill,
    finished,
    with_question,
)
from datamodules.synthetic.seeds import Seed, Seeds

TEMPLATE = """\
Say the following in other words. Keep its meaning, every name and every number, and write nothing else.

{text}"""


class Paraphrase(RecordGenerator):
    """Lets a model say a record's last question in other words; the response stays the real one, of pairs both do.

    Args:
        template: what is asked; `{text}` stands for the question.
        kwargs: see `RecordGenerator`; `num_shots` has no use here.
    """

    def __init__(self, template: str = TEMPLATE, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.template = check_template(self, template, "text")

    def makes_pairs(self, seeds_are_pairs: bool) -> bool:
        """As the real records."""
        return seeds_are_pairs

    def steps(self, number: int, seeds: Seeds) -> Steps:
        """Ask for a paraphrase of the question, in one call."""
        seed = self.seed_of(number, seeds)
        [reply] = yield [self.ask(fill(self.template, text=seed.question), number, 0)]
        return [reworded(seed, finished(reply))]


def reworded(seed: Seed, question: str) -> Draft:
    """The real record with another question; raises `Dropped` where it has no response, or the question is the same."""
    if not seed.answer:
        raise Dropped("the real record has no answer")
    if question == seed.question:
        raise Dropped("the words are the same")
    return Draft(with_question(seed.messages, question), (seed,), rejected=seed.rejected)
