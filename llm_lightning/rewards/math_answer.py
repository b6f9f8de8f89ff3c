"""Answers that are more than a plain number: roots, fractions of letters, intervals, sets, matrices."""

import contextlib
import importlib.util
import json
import re
import select
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from llm_lightning.errors import UserError
from llm_lightning.rewards.final_number import MARK, WORD, final_number
from llm_lightning.rewards.scoring import Columns, Prompt

FUNCTIONS = re.compile("(arc)?(sin|cos|tan)h?|cot|sec|csc|log|ln|exp|sqrt|pi|det|or|and")


IMPORTS = 120.0
"""Seconds that a busy machine may take to import sympy."""

WORKER = Path(__file__).with_name("math_worker.py")


class Compared(NamedTuple):
    """What came of a comparison.

    Args:
        is_right: whether the completion has the answer.
        is_read: whether the answer itself could be read.
    """

    is_right: bool
    is_read: bool


class MathAnswer:
    """1 where the completion's answer is the right one as mathematics, else 0: `\\sqrt{12}` is `2\\sqrt{3}`.

    Plain numbers are read as by `FinalAnswer`; what these do not settle is compared by math-verify
    (https://github.com/huggingface/Math-Verify), in a process beside the run that is ended where it takes too long or
    too much memory: a policy may write `9^{9^{9^9}}`. Such an answer is a wrong one. May be called in any thread.

    Args:
        column: holds the right answer: an expression in LaTeX with or without `$`, or a solution with the answer in a
            `\\boxed{}` or behind `####`.
        timeout: seconds for one comparison; parsing and comparing may take a quarter of it each.
    """

    def __init__(self, column: str = "answer", timeout: float = 8.0) -> None:
        if timeout < 1:
            raise UserError(f"MathAnswer.timeout={timeout} must be at least 1.")
        self.column = column
        self.timeout = timeout
        self._process: subprocess.Popen[str] | None = None
        self._asking = threading.Lock()

    def check(self) -> None:
        """Raise `UserError` where math-verify is not installed."""
        if importlib.util.find_spec("math_verify") is None:
            raise UserError(
                "MathAnswer needs math-verify: pip install 'llm-lightning[math]'. FinalAnswer reads plain numbers."
            )

    def check_record(self, columns: Mapping[str, Any]) -> str | None:
        """See `RecordCheck`."""
        if self.column not in columns:
            return f"MathAnswer.column={self.column!r}: the record has the columns {', '.join(columns) or '(none)'}"
        answer = _text(columns[self.column])
        if answer is not None and (words := _words(answer)):
            return (
                f"MathAnswer: column {self.column!r} holds words ({words}), and letters are variables to it: {answer!r}"
            )
        if answer is None or not (final_number(answer) or self._compare(answer, None).is_read):
            return f"MathAnswer: column {self.column!r} holds nothing mathematical: {shorten(repr(answer), 80)}"
        return None

    def __call__(self, prompts: list[Prompt], completions: list[str], columns: Columns) -> list[float]:
        """See `RewardFunction`."""
        if self.column not in columns:
            raise UserError(f"MathAnswer.column={self.column!r}: the data has the columns {', '.join(columns)}.")
        return [
            float(self._is_right(completion, _text(answer)))
            for completion, answer in zip(completions, columns[self.column], strict=True)
        ]

    def _is_right(self, completion: str, answer: str | None) -> bool:
        if answer is None:
            raise ValueError(f"column {self.column!r} holds no answer")
        wanted, given = final_number(answer), final_number(completion)
        if wanted and given:
            return given.matches(wanted)
        compared = self._compare(answer, completion)
        if not (compared.is_read or wanted):
            raise ValueError(f"column {self.column!r} holds nothing mathematical: {shorten(repr(answer), 80)}")
        return compared.is_right

    def _compare(self, answer: str, completion: str | None) -> Compared:
        request = {"answer": _marked(answer), "completion": completion, "timeout": self.timeout}
        with self._asking:
            reply = self._ask(json.dumps(request) + "\n")
        return Compared(False, completion is not None) if reply is None else Compared(reply["right"], reply["read"])

    def _ask(self, line: str) -> dict[str, Any] | None:
        """None where the process had to be ended, or ended by itself."""
        if self._process is None:
            self.check()
            # -P: this file's folder holds a numbers.py, which is not Python's.
            command = [sys.executable, "-P", str(WORKER)]
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(command, text=True, encoding="utf-8", **pipes)
            weakref.finalize(self, _end, self._process)
            first = json.dumps({"answer": "$1$", "completion": "$1$", "timeout": IMPORTS}) + "\n"
            if self._exchange(first, IMPORTS) is None:
                raise UserError("MathAnswer: math-verify cannot be used here; `import math_verify` says why.")
        return self._exchange(line, self.timeout)

    def _exchange(self, line: str, timeout: float) -> dict[str, Any] | None:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
            if select.select([process.stdout], [], [], timeout)[0] and (reply := process.stdout.readline()):
                return dict(json.loads(reply))
        except OSError:  # it is gone
            pass
        self._process = None
        _end(process)
        return None


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    with contextlib.suppress(OSError, ValueError):  # what it never read cannot be flushed
        process.communicate()


def _text(answer: Any) -> str | None:
    if isinstance(answer, bool) or answer is None:
        return None
    if isinstance(answer, int | float):
        return str(answer)
    return answer if isinstance(answer, str) and answer.strip() else None


def _words(answer: str) -> str:
    """Words of an answer without marks, but for names of functions: mathematics would not tell `heat` from `hate`."""
    if _marked(answer) == answer or MARK in answer:
        return ""
    found = WORD.findall(re.sub(r"\\text\{[^{}]*\}", "", answer))
    return ", ".join(word for word in found if not FUNCTIONS.fullmatch(word))


def _marked(answer: str) -> str:
    """As math-verify finds it: what has no mark is nothing but the answer."""
    if "\\boxed" in answer or "$" in answer or "\\(" in answer or "\\[" in answer:
        return answer
    return f"${answer.rpartition(MARK)[2].strip()}$"
