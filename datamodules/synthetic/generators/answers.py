"""Responses to given prompts."""

from typing import Any

from datamodules.synthetic.generators.base import Draft, RecordGenerator, Steps, finished, turns
from datamodules.synthetic.seeds import Seeds


class Answers(RecordGenerator):
    """Lets a model answer prompts: those of the training records, or others.

    Args:
        path: a file of prompts, in the shapes of `PromptDataModule`. None: what the training records ask.
        num_answers: responses to each prompt; equal ones count once.
        kwargs: see `RecordGenerator`.
    """

    def __init__(self, path: str | None = None, num_answers: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path
        self.num_answers = num_answers

    def steps(self, number: int, seeds: Seeds) -> Steps:
        """Ask for all responses at once."""
        seed = self.seed_of(number, seeds)
        shots = [shot for shot in self.shots(number, seeds, without=seed.id) if shot.answer]
        prompt = [*(turn for shot in shots for turn in turns(shot)), *seed.prompt]
        replies = yield [self.ask(prompt, number, step) for step in range(self.num_answers)]
        whole = [reply for reply in replies if reply.is_finished] or replies[:1]
        texts = dict.fromkeys(finished(reply) for reply in whole)
        seeds_used = (seed, *shots)
        return [Draft([*seed.prompt, {"role": "assistant", "content": text}], seeds_used) for text in texts]
