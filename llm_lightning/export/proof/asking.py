"""One model's answers, from a process of its own in which nothing of ours is imported."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_lightning.export.errors import RefusedError

SCRIPTS = Path(__file__).parents[1] / "answers"
LINES = 3
"""Of what a failed process said: its end names the error."""


@dataclass(frozen=True)
class Answers:
    """What a script of `answers/` wrote; `logits` (N, V) float32, of a reward model None."""

    said: dict[str, Any]
    logits: np.ndarray | None


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
    # Neither this project nor what else is on the path by an environment variable, and never a hub.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(python), "-s", str(SCRIPTS / f"{script}.py"), str(asked), str(place)]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()][-LINES:]
        raise RefusedError(f"it cannot be loaded and asked: {' / '.join(said) or f'exit code {done.returncode}'}")
    logits = place / "logits.npy"
    said = json.loads((place / "answers.json").read_text(encoding="utf-8"))
    return Answers(said, np.load(logits, mmap_mode="r", allow_pickle=False) if logits.exists() else None)
