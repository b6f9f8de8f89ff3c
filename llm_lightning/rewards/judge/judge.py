"""A language model that says how good completions are (RLAIF, arXiv:2309.00267)."""

import json
from collections.abc import Callable, Sequence
from itertools import combinations, groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from llm_lightning.errors import UserError
from llm_lightning.rewards.judge.agreement import Agreement, Measured, measure
from llm_lightning.rewards.judge.budget import Budget
from llm_lightning.rewards.judge.engine import JudgeEngine
from llm_lightning.rewards.judge.labelled import LabelledPair, read_pairs
from llm_lightning.rewards.judge.rubric import Rubric
from llm_lightning.rewards.judge.verdicts import Verdicts
from llm_lightning.rewards.scoring import Columns, Prompt, Scores
from llm_lightning_safety.files import make_folder, write_text

REPORT = "agreement.json"

Comparison = Literal["pointwise", "pairwise"]

BothOrders: TypeAlias = tuple[float | None, float | None]
"""Of two orders of two responses, whether the one shown first is better: 1, 0, 0.5 for neither, None for no verdict."""


class Judge:
    """What a language model thinks of completions, from 0 to 1.

    Before it gives the first reward, it is compared with labelled pairs: how often it prefers the better response, and
    whether it favours the longer one or the one shown first. A judge that agrees too little gives none.

    Args:
        engine: what judges: a model folder by `llm_lightning.rollouts.LocalEngine`, an OpenAI-compatible endpoint by
            `datamodules.OpenAIEngine`, or a class of your own.
        rubric: by what it judges.
        agreement: the labelled pairs; null takes a judge at its word, which a line says.
        comparison: `pointwise`: each completion gets a grade. `pairwise`: all completions to a prompt are compared with
            each other, each two in both orders, and the reward is the share that is won: no favour for a position can
            be earned, at n(n-1) calls a prompt instead of n.
        budget: what verdicts may cost.
        max_new_tokens: of a reply, reasons included. What is cut off before its verdict has none.
        folder: where verdicts are kept, by content; by default `judges/NAME` of the run folder while a policy is
            trained, else in memory.

    A reply without a verdict is a grade of 0, or a tie. Its parts are logged: `reward/NAME/unreadable`, the share of
    such replies, and with pairs `reward/NAME/inconsistent`, the share of comparisons that the order decides.
    """

    def __init__(
        self,
        engine: JudgeEngine,
        rubric: Rubric,
        agreement: Agreement | None,
        comparison: Comparison = "pointwise",
        budget: Budget = Budget(),  # noqa: B008 (read only)
        max_new_tokens: int = 256,
        folder: str | None = None,
    ) -> None:
        self.engine, self.rubric, self.agreement, self.comparison = engine, rubric, agreement, comparison
        self.budget, self.max_new_tokens, self.folder = budget, max_new_tokens, folder
        self.measured: Measured | None = None
        self._verdicts: Verdicts | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """What is logged beside the reward."""
        return ("unreadable",) if self.comparison == "pointwise" else ("unreadable", "inconsistent")

    def check(self) -> None:
        """Raise `UserError` for settings that cannot work; nothing is asked."""
        self.rubric.check()
        self.budget.check()
        if self.max_new_tokens < 1:
            raise UserError(f"Judge.max_new_tokens={self.max_new_tokens} must be at least 1.")
        if self.agreement is not None:
            self.agreement.check()
            read_pairs(self.agreement.path, self.agreement.num_pairs)
        self.engine.check()

    def prepare(self, folder: Path | None, tell: Callable[[str], Any]) -> None:
        """Compare the judge with the labelled pairs, once; what it replied before is not asked again.

        Args:
            folder: where verdicts are kept, unless the judge has a folder of its own.
            tell: is told how far it agrees.

        Raises:
            UserError: it agrees too little.
        """
        if self._verdicts is not None:
            return
        place = Path(self.folder) if self.folder else folder
        verdicts = Verdicts(self.engine, self.max_new_tokens, self.budget, place)
        if self.agreement is None:
            tell(f"Judge {self.engine.model}: how far it agrees with people is not known (agreement: null).")
        else:
            pairs = read_pairs(self.agreement.path, self.agreement.num_pairs)
            self.measured = self._measure(pairs, verdicts)
            tell(f"Judge {self.engine.model}: {self.measured}.")
            if place is not None:
                make_folder(place)
                write_text(place / REPORT, json.dumps(self.measured.as_dict() | verdicts.summary(), indent=2) + "\n")
            if self.measured.accuracy < self.agreement.least:
                raise UserError(
                    f"Judge.agreement.least={self.agreement.least}: {self.engine.model} is {self.measured}. Take "
                    "another model or rubric, or lower it, if so much noise is what you want to train on."
                )
        self._verdicts = verdicts

    def __call__(self, prompts: list[Prompt], completions: list[str], columns: Columns) -> Scores:
        """See `RewardFunction`. Completions to the same prompt follow each other.

        Raises:
            UserError: the judge agrees too little with its labelled pairs, its budget is spent, calls came to nothing,
                or a completion has no other one to be compared with.
        """
        self.prepare(None, print)
        assert self._verdicts is not None
        if self.comparison == "pointwise":
            grades = self._grades(list(zip(prompts, completions, strict=True)), self._verdicts)
            return Scores([grade or 0.0 for grade in grades], {"unreadable": [float(g is None) for g in grades]})
        return self._tournament(prompts, completions, self._verdicts)

    def _grades(self, responses: Sequence[tuple[Prompt, str]], verdicts: Verdicts) -> list[float | None]:
        questions = [self.rubric.about_one(*one) for one in responses]
        return [self.rubric.grade(reply) for reply in verdicts.replies(questions)]

    def _both_orders(self, pairs: Sequence[tuple[Prompt, str, str]], verdicts: Verdicts) -> list[BothOrders]:
        """Of each pair, whether the response shown first is better, as it is and turned round."""
        orders = [order for prompt, a, b in pairs for order in ((prompt, a, b), (prompt, b, a))]
        found = [
            self.rubric.share_of_first(r) for r in verdicts.replies([self.rubric.about_two(*one) for one in orders])
        ]
        return list(zip(found[::2], found[1::2], strict=True))

    def _tournament(self, prompts: list[Prompt], completions: list[str], verdicts: Verdicts) -> Scores:
        groups = [[number for number, _ in group] for _, group in groupby(enumerate(prompts), key=lambda one: one[1])]
        if any(len(group) < 2 for group in groups):
            raise UserError(
                "Judge.comparison=pairwise compares the completions to a prompt with each other, and one has no "
                "other: raise model.rollout.num_samples, or take pointwise."
            )
        games = [game for group in groups for game in combinations(group, 2)]
        # The same text twice is a tie that nobody need be asked about.
        asked = [(a, b) for a, b in games if completions[a] != completions[b]]
        found = self._both_orders([(prompts[a], completions[a], completions[b]) for a, b in asked], verdicts)
        shown = dict(zip(asked, found, strict=True))
        sums = np.zeros((len(completions), 3))
        for a, b in games:
            straight, turned = orders = shown.get((a, b), (0.5, 0.5))
            won, inconsistent = preference(orders), straight == turned and straight in (0, 1)
            sums[a] += won, orders.count(None) / 2, inconsistent
            sums[b] += 1 - won, orders.count(None) / 2, inconsistent
        num_games = np.array([len(group) - 1 for group in groups for _ in group])
        wins, unreadable, inconsistent = (sums / num_games[:, None]).T.tolist()
        return Scores(wins, {"unreadable": unreadable, "inconsistent": inconsistent})

    def _measure(self, pairs: Sequence[LabelledPair], verdicts: Verdicts) -> Measured:
        if self.comparison == "pointwise":
            responses = [(pair.prompt, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
            grades = self._grades(responses, verdicts)
            known = [grade or 0.0 for grade in grades]
            preferences = [0.5 + (a > b) / 2 - (a < b) / 2 for a, b in zip(known[::2], known[1::2], strict=True)]
            return measure(pairs, preferences, grades.count(None) / len(grades), None)
        orders = self._both_orders(pairs, verdicts)
        unreadable = sum(order.count(None) for order in orders) / (2 * len(orders))
        return measure(pairs, list(map(preference, orders)), unreadable, orders)


def preference(orders: BothOrders) -> float:
    """For the response that is shown first in the first of two orders: from 0 to 1; what is not said is a tie."""
    straight, turned = (0.5 if share is None else share for share in orders)
    return (straight + 1 - turned) / 2
