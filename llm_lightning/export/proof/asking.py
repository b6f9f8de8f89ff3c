"""One model's answers, from a process of its own in which nothing of ours is imported."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_lightning.export.errors import RefusedError

MOST = 500
"""Characters of an error that are shown."""

SCRIPTS = Path(__file__).parents[1] / "answers"


@dataclass(frozen=True)
class Answers:
    """What a script of `answers/` wrote; `logits` (N, V) float32, of a reward model None."""

    said: dict[str, Any]
    logits: np.ndarray | None


@dataclass(frozen=True)
class OtherEngine:
    """One more program that loads what was written.

    Args:
        name: of the program.
        script: of `answers/`.
        questions: what the script has to know.
        python: the interpreter that has it.
        may_differ: texts that it gives other token ids.
    """

    name: str
    script: str
    questions: dict[str, Any]
    python: Path
    may_differ: tuple[str, ...] = ()


def ask(script: str, questions: dict[str, Any], place: Path, *, python: Path | str = sys.executable) -> Answers:
    """Run a script, and read its answers.

    Args:
        script: its name.
        questions: for it; see `questions.questions`.
        place: a new folder for questions, answers and logits.
        python: the interpreter of an environment that has the engine.

    Raises:
        RefusedError: the process failed: what it asks cannot be loaded or run.
    """
    place.mkdir()
    asked = place / "questions.json"
    asked.write_text(json.dumps(questions), encoding="utf-8")
    done = run_apart([str(python), "-s", str(SCRIPTS / f"{script}.py"), str(asked), str(place)], place)
    if done.returncode:
        raise RefusedError(f"it cannot be loaded and asked: {last_error(done)}")
    logits = place / "logits.npy"
    said = json.loads((place / "answers.json").read_text(encoding="utf-8"))
    return Answers(said, np.load(logits, mmap_mode="r", allow_pickle=False) if logits.exists() else None)


def run_apart(command: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    """A process in a folder, without what environment variables put on Python's path, and without the hub."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, errors="replace")


def last_error(done: subprocess.CompletedProcess[str]) -> str:
    """What a failed process said last: the error under a traceback, without it."""
    if done.returncode < 0:
        return f"its process was ended by signal {-done.returncode} (9 is what a full memory leads to)"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [n for n, line in enumerate(lines) if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return " ".join(lines[errors[-1] if errors else -1 :])[:MOST] or f"exit code {done.returncode}"
