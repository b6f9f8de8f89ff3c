"""Preference pairs: two responses of a model, and which one is better."""

import re
from collections import Counter
from typing import Any

from datamodules.synthetic.candidate import Scorer
from datamodules.synthetic.generators.base import (
    Draft,
    Dropped,
    RecordGenerator,
    Steps,
    check_template,
    fill,
    finished,
)
from datamodules.synthetic.seeds import Seeds

JUDGE = """\
Which of two answers to a question is better: more helpful, more correct, more to the point?

Question:
{question}

Answer A:
{a}

Answer B:
{b}

Reply with the letter A or B alone."""

VERDICT = re.compile(r"\b([AB])\b")


class PreferencePairs(RecordGenerator):
    """Samples two responses to a prompt and lets a scorer, or the model itself, say which one is better.

    A judge is asked in both orders, and a pair on which its two verdicts differ is dropped: models prefer a place, the
    first one mostly (Zheng et al., arXiv:2306.05685).

    Args:
        scorer: gives each response a number, as a reward does: `llm_lightning.rewards.RewardModel` reads a reward
            model's folder. None: the model judges by `judge`.
        least_margin: pairs whose scores differ by less are dropped.
        judge: what the judge is asked; `{question}`, `{a}` and `{b}` stand for the question and the responses.
        path: a file of prompts, in the shapes of `PromptDataModule`. None: what the training records ask.
        temperature: higher than elsewhere, since two responses have to differ.
        kwargs: see `RecordGenerator`.
    """

    def __init__(
        self,
        scorer: Scorer | None = None,
        least_margin: float = 0.0,
        judge: str = JUDGE,
        path: str | None = None,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(temperature=temperature, **kwargs)
        self.scorer = scorer
        self.least_margin = least_margin
        self.judge = check_template(self, judge, "question", "a", "b")
        self.path = path

    def makes_pairs(self, seeds_are_pairs: bool) -> bool:
        """Always, whatever the seeds are."""
        return True

    def steps(self, number: int, seeds: Seeds) -> Steps:
        """Ask for two responses, then for both verdicts."""
        seed = self.seed_of(number, seeds)
        replies = yield [self.ask(seed.prompt, number, step) for step in (0, 1)]
        first, second = (finished(reply) for reply in replies)
        if first == second:
            raise Dropped("two equal answers")
        if self.scorer is None:
            orders = [(first, second), (second, first)]
            asked = [fill(self.judge, question=seed.question, a=a, b=b) for a, b in orders]
            replies = yield [self.ask(text, number, 2, temperature=0.0, max_new_tokens=8) for text in asked]
            verdicts = [found[1] if (found := VERDICT.search(reply.text)) else None for reply in replies]
            if None in verdicts:
                raise Dropped("no verdict in the judge's reply")
            if verdicts[0] == verdicts[1]:
                raise Dropped("the verdicts of both orders differ")
            if verdicts[0] == "B":
                first, second = second, first
        return [Draft([*seed.prompt, {"role": "assistant", "content": first}], (seed,), rejected=second)]

    def finish(self, drafts: list[Draft]) -> tuple[list[Draft | None], Counter[str]]:
        """Score all responses of many pairs together, as a reward model reads them in batches."""
        if self.scorer is None or not drafts:
            return super().finish(drafts)
        names = {name for draft in drafts for name in draft.seeds[0].columns}
        columns = {name: [draft.seeds[0].columns.get(name) for draft in drafts] for name in names}
        prompts = [draft.messages[:-1] for draft in drafts]
        first = self.scorer(prompts, [str(draft.messages[-1]["content"]) for draft in drafts], columns)
        second = self.scorer(prompts, [str(draft.rejected) for draft in drafts], columns)
        kept = [self._ordered(*each) for each in zip(drafts, first, second, strict=True)]
        return kept, Counter({"scores too close": kept.count(None)})

    def _ordered(self, draft: Draft, first: float, second: float) -> Draft | None:
        if first == second or abs(first - second) < self.least_margin:
            return None
        responses = [str(draft.messages[-1]["content"]), str(draft.rejected)]
        if second > first:
            responses.reverse()
        messages = [*draft.messages[:-1], {"role": "assistant", "content": responses[0]}]
        scores = {"chosen_score": max(first, second), "rejected_score": min(first, second)}
        return Draft(messages, draft.seeds, rejected=responses[1], scores=scores)
