"""Responses that a model, asked for a mark, finds bad."""

import re
from collections.abc import Iterator

import numpy as np

from datamodules.errors import DataError
from datamodules.synthetic.candidate import Candidate
from datamodules.synthetic.engine import Request
from datamodules.synthetic.filters.filter import Context, Filter, Scores, Threshold

PROMPT = """\
Below are an instruction and an answer to it. Judge how helpful, correct and complete the answer is.
Reply with one whole number from 1 (useless or wrong) to 10 (could not be better), and nothing else.

### Instruction
{prompt}

### Answer
{answer}

### Number"""
MARK = re.compile(r"(?<![\d.])(10|[1-9])(?![\d]|\.\d)")
TOKENS = 16  # enough for "Number: 10" and its like


class Judge(Filter):
    """Keeps the responses to which the engine's model gives a good mark, from 1 to 10.

    It is asked at temperature 0. The first whole number of its reply counts; a reply without one drops the record.

    Args:
        threshold: by default 6 or more.
        prompt: with {prompt} and {answer}.
    """

    name = "judge"

    def __init__(self, threshold: Threshold = Threshold(min=6), prompt: str = PROMPT) -> None:  # noqa: B008
        super().__init__(threshold)
        if "{prompt}" not in prompt or "{answer}" not in prompt:
            raise DataError("filters: Judge.prompt must say where the record goes: {prompt} and {answer}")
        self.prompt = prompt

    def scores(self, batches: Iterator[list[Candidate]], context: Context) -> Iterator[Scores]:
        """One number a record: its mark."""
        engine = context.engine_for("Judge")
        for batch in batches:
            marks = np.full(len(batch), np.nan, np.float32)
            for place, reply in engine.write([self._request(candidate) for candidate in batch]):
                mark = MARK.search(reply.text)
                marks[place] = float(mark[1]) if mark else np.nan
            yield Scores(marks)

    def _request(self, candidate: Candidate) -> Request:
        # Not str.format: braces are common in records.
        parts = re.split(r"(\{prompt\}|\{answer\})", self.prompt)
        texts = {"{prompt}": candidate.prompt, "{answer}": candidate.answer}
        question = "".join(texts.get(part, part) for part in parts)
        return Request(({"role": "user", "content": question},), seed=0, temperature=0.0, max_new_tokens=TOKENS)
