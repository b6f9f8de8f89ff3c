"""Chains of thought, kept where they arrive at the right answer."""

from typing import Any

from datamodules.errors import DataError
from datamodules.synthetic.candidate import Scorer
from datamodules.synthetic.generators.base import (
    Draft,
    Dropped,
    RecordGenerator,
    Steps,
    check_template,
    fill,
    turns,
)
from datamodules.synthetic.seeds import Seed, Seeds

TEMPLATE = """\
{question}

Think step by step. Write the final answer on a last line that begins with ####."""


LOOKED_AT = 1000
"""Real records that are looked at before any call; the others each before its own."""


class Rationales(RecordGenerator):
    """Lets a model reason, and keeps what arrives at the real record's answer: rejection sampling, the first half of
    STaR (Zelikman et al., arXiv:2203.14465).

    Args:
        correct: says which answers are right, as a reward does: `llm_lightning.rewards.FinalAnswer` compares the number
            behind `####`, or the last one. It is given the record's columns, and the real answer as `answer`.
        num_samples: chains of thought for each question.
        most_kept: right ones that are kept, at most: easy questions would crowd out hard ones.
        template: what is asked; `{question}` stands for the question. The record has the question alone.
        num_shots: real records that are shown as earlier turns, questions with their reasoned answers.
        kwargs: see `RecordGenerator`.
    """

    def __init__(
        self,
        correct: Scorer,
        num_samples: int = 4,
        most_kept: int = 1,
        template: str = TEMPLATE,
        num_shots: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_shots=num_shots, **kwargs)
        self.correct = correct
        self.num_samples = num_samples
        self.most_kept = most_kept
        self.template = check_template(self, template, "question")

    def check_seeds(self, seeds: Seeds) -> None:
        """Find answers that nothing can be compared with, and columns that are not there."""
        for place in range(min(len(seeds), LOOKED_AT)):
            if seeds[place].answer:
                self._check_seed(seeds[place])

    def _check_seed(self, seed: Seed) -> None:
        check = getattr(self.correct, "check_record", None)
        if callable(check) and (reason := check({"answer": seed.answer} | seed.columns)) is not None:
            raise DataError(f"generators: the answer of record {seed.id!r} cannot be compared: {reason}")

    def steps(self, number: int, seeds: Seeds) -> Steps:
        """Ask for all chains at once."""
        seed = self.seed_of(number, seeds)
        if not seed.answer:
            raise Dropped("the real record has no answer")
        self._check_seed(seed)
        shots = self.shots(number, seeds, without=seed.id)
        prompt = [turn for shot in shots for turn in turns(shot)]
        prompt.append({"role": "user", "content": fill(self.template, question=seed.question)})
        replies = yield [self.ask(prompt, number, step) for step in range(self.num_samples)]
        texts = dict.fromkeys(reply.text.strip() for reply in replies if reply.is_finished and reply.text.strip())
        if not texts:
            raise Dropped("cut off at max_new_tokens")
        count = len(texts)
        columns = {name: [value] * count for name, value in ({"answer": seed.answer} | seed.columns).items()}
        try:
            right = self.correct([seed.prompt] * count, list(texts), columns)
        except ValueError as error:
            raise DataError(f"generators: the answer of record {seed.id!r} cannot be compared: {error}") from error
        kept = [text for text, score in zip(texts, right, strict=True) if score > 0][: self.most_kept]
        if not kept:
            raise Dropped("wrong answer")
        used = (seed, *shots)
        share = sum(score > 0 for score in right) / count
        return [
            Draft([*seed.prompt, {"role": "assistant", "content": text}], used, scores={"share_right": share})
            for text in kept
        ]
