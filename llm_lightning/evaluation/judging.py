"""Answers judged by a model, where a task says what to ask it: in the place of the task's own rules."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.evaluation.harness import NetworkLM
from llm_lightning.evaluation.scores import Judged
from llm_lightning.measuring.answers import key_of
from llm_lightning.rewards.judge import JudgeEngine, VerdictRequest

VERDICT = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
NUM_AT_ONCE = 256
"""Questions that are handed to the judge together: its verdicts are on disk after so many."""


def judge_answers(task: Any, samples: Sequence[dict[str, Any]], lm: NetworkLM, judge: JudgeEngine | None) -> Judged:
    """Ask the judge about each answer, and put its verdicts in the place of the task's scores.

    A task says `judge: {metrics: [NAME, ...], prompt: TEXT}` in its `metadata`; in the text `{answer}` stands for the
    answer and `{COLUMN}` for what the item holds. Yes is 1 in these metrics, and no is 0. Ranks share the questions.

    Args:
        task: lm-eval's.
        samples: what lm-eval logged of it; their scores are changed.
        lm: that answered; verdicts are kept with its answers.
        judge: None leaves all as the task's rules have it.

    Raises:
        UserError: a judge is given, and this task does not say what to ask it.
    """
    metadata: Mapping[str, Any] = task.config.metadata or {}
    if judge is None:
        return Judged(metadata.get("judged_by"))
    asked = metadata.get("judge")
    if not isinstance(asked, Mapping) or not {"metrics", "prompt"} <= set(asked):
        raise UserError(
            f"judge: the task {task.task_name} does not say what a judge is asked: give it `metadata: {{judge: "
            "{metrics: [NAME], prompt: TEXT}}` in its YAML, or leave the judge out."
        )
    questions = [_question(asked["prompt"], sample) for sample in samples]
    verdicts = _verdicts(questions, lm, judge)
    unreadable: Counter[str] = Counter()
    for sample, question in zip(samples, questions, strict=True):
        found = VERDICT.search(verdicts.get(question, ""))
        for metric in [name for name in sample["metrics"] if name in asked["metrics"]]:
            if found is None:
                sample["metrics"] = [name for name in sample["metrics"] if name != metric]
                unreadable[metric] += 1
            else:
                sample[metric] = float(found[1].lower() == "yes")
    return Judged(in_words(judge), asked["prompt"], unreadable)


def in_words(judge: JudgeEngine) -> str:
    """Names the judge in results."""
    settings = judge.settings()
    own = {name: settings[name] for name in ("path", "url", "model_name") if settings.get(name)}
    words = [str(settings.get("engine", type(judge).__name__)), *map(str, own.values())]
    return " ".join(words if judge.model in words else [*words, f"({judge.model})"])


def _question(prompt: str, sample: Mapping[str, Any]) -> str:
    texts = {**sample["doc"], "answer": str(sample["resps"][0][0])}
    # In one pass, and not by str.format: braces are common in answers.
    return re.sub(r"\{(\w+)\}", lambda found: str(texts.get(found[1], found[0])), prompt)


def _verdicts(questions: Sequence[str], lm: NetworkLM, judge: JudgeEngine) -> dict[str, str]:
    keys = {question: key_of("verdict", judge.model, question) for question in questions}
    missing = lm.engine.ranks.share([question for question, key in keys.items() if key not in lm.answers])
    own: dict[str, str] = {}
    for begin in range(0, len(missing), NUM_AT_ONCE):
        group = missing[begin : begin + NUM_AT_ONCE]
        requests = [VerdictRequest(({"role": "user", "content": question},)) for question in group]
        for place, reply in judge.write(requests):
            own[keys[group[place]]] = reply.text
            lm.answers.add(keys[group[place]], reply.text)
    judge.release()
    for others in lm.engine.ranks.gather(own):
        lm.answers.take(others)
    return {question: lm.answers[key] for question, key in keys.items() if key in lm.answers}
