"""A judge's replies: each question is asked once, within a budget."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.measuring.answers import Answers, key_of
from llm_lightning.measuring.ranks import EvaluationRanks
from llm_lightning.rewards.judge.budget import Budget
from llm_lightning.rewards.judge.engine import JudgeEngine, VerdictRequest

NUM_AT_ONCE = 64
"""Calls of a round; the budget is looked at before each."""


class _EachByItself(EvaluationRanks):
    """Ranks that do not wait for each other: one without completions asks nothing."""

    def wait(self) -> None:
        pass


class Verdicts:
    """Replies by the content of what was asked, in the files of a folder.

    Args:
        engine: what replies.
        max_new_tokens: of a reply.
        budget: what all replies in the folder may cost; of several ranks each counts its own as often as there are
            ranks.
        folder: None: replies are kept in memory.
    """

    def __init__(self, engine: JudgeEngine, max_new_tokens: int, budget: Budget, folder: Path | None) -> None:
        self.engine, self.max_new_tokens, self.budget = engine, max_new_tokens, budget
        self._ranks = _EachByItself()
        self._known = Answers(folder, self._ranks)
        settings = engine.settings()
        self._model = [engine.model, settings.get("url")]
        self.calls, self.money = 0, 0.0
        for _, *tokens in self._known.values():
            self._count(*tokens)

    def replies(self, questions: Sequence[str]) -> list[str]:
        """The texts of the replies.

        Raises:
            UserError: the budget is spent, or a call came to nothing.
        """
        keys = [key_of("verdict", *self._model, self.max_new_tokens, question) for question in questions]
        missing = {key: text for key, text in zip(keys, questions, strict=True) if key not in self._known}
        while missing:
            room = self.budget.room(self.calls, self.money)
            self._ask(list(missing)[: NUM_AT_ONCE if room is None else min(room, NUM_AT_ONCE)], missing)
        return [self._known[key][0] for key in keys]

    def _ask(self, keys: list[str], missing: dict[str, str]) -> None:
        requests = [
            VerdictRequest(({"role": "user", "content": missing[key]},), max_new_tokens=self.max_new_tokens)
            for key in keys
        ]
        for place, reply in self._written(requests):
            tokens = getattr(reply, "num_prompt_tokens", 0), reply.num_tokens
            if self.budget.money is not None and not any(tokens):
                raise UserError(
                    f"Judge.budget.money={self.budget.money:g}: {self.engine.model} does not count tokens, so "
                    "that what it costs is not known. Bound budget.calls instead."
                )
            self._known.add(keys[place], [reply.text, *tokens])
            self._count(*tokens, times=self._ranks.count)
            del missing[keys[place]]
        if lost := [key for key in keys if key in missing]:
            raise UserError(
                f"Judge: {len(lost)} of {len(keys)} calls to {self.engine.model} came to nothing. The other verdicts "
                "are kept: the same command goes on."
            )

    def _written(self, requests: Sequence[VerdictRequest]) -> Iterator[tuple[int, Any]]:
        try:
            yield from self.engine.write(requests)
        except UserError:
            raise
        except ValueError as error:  # such as another package has for its user's mistakes
            raise UserError(f"Judge: {error}") from error

    def _count(self, prompt_tokens: int, completion_tokens: int, times: int = 1) -> None:
        self.calls += times
        self.money += times * self.budget.cost(prompt_tokens, completion_tokens)

    def summary(self) -> dict[str, Any]:
        """What is written into reports."""
        return {"calls": self.calls, "money": round(self.money, 6)}
