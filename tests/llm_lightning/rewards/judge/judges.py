"""Judges with a rule behind a real endpoint, and pairs that a rule has labelled."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from datamodules import OpenAIEngine
from llm_lightning.rewards import Agreement, Judge, Rubric

RUBRIC = Rubric(["It names more fruits."])
FRUITS = re.compile("apple|pear|plum")


def quality(text: str) -> int:
    return len(FRUITS.findall(text))


def responses(question: str) -> list[str]:
    """Those that stand between the marks of a question, in their order."""
    return re.findall(r"<response[ AB]* \w{8}>\n(.*?)\n</response", question, re.DOTALL)


def by_rule(value: Callable[[str], float]) -> Callable[[dict], str]:
    """A judge that takes the response of more value, and grades a single one by it."""

    def answer(body: dict) -> str:
        values = [value(text) for text in responses(body["messages"][0]["content"])]
        if len(values) == 1:
            return f"Some words.\nVerdict: {min(10, 1 + int(values[0]))}"
        return f"Verdict: {'tie' if values[0] == values[1] else 'AB'[values[1] > values[0]]}"

    return answer


def write_pairs(path: Path, count: int = 40) -> Path:
    """Pairs in which more fruits are better; the longer response is the better one in every second."""
    rows = []
    for number in range(count):
        better, worse = "apple pear", "plum"
        more, less = (better, worse) if number % 2 else (worse, better)
        long = f"{more} and {'many ' * (3 + number % 5)}words"
        texts = {more: long, less: f"{less} {number}"}
        rows.append({"prompt": f"Name fruits, {number}.", "chosen": texts[better], "rejected": texts[worse]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judge_of(url: str, pairs: Path | None, least: float = 0.6, **settings) -> Judge:
    agreement = None if pairs is None else Agreement(str(pairs), least)
    engine = settings.pop("engine", None) or OpenAIEngine(url, "judge", max_retries=1, timeout=5.0)
    return Judge(engine, settings.pop("rubric", RUBRIC), agreement, **settings)
