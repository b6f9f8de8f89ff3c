"""What a model answers: the same questions for each engine, in a process that knows nothing of this project.

The scripts beside this file are run by the interpreter of the engine's own environment:
`python SCRIPT QUESTIONS.json FOLDER`. They import what the environment has, and this file. FOLDER gets `answers.json`
and `logits.npy`.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

MOST_PROMPTS, MOST_PROMPT_TOKENS = 12, 32


class Engine(Protocol):
    """A model with its tokenizer, as one library loads them."""

    num_positions: int
    """The most tokens that it takes at once."""

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, with what the tokenizer puts around it."""

    def render(self, messages: list[dict[str, str]], begin_reply: bool) -> str | None:
        """A conversation as its chat template writes it; None where there is no template."""

    def logits(self, ids: list[int]) -> np.ndarray:
        """(T, V) float32, of a text of T tokens."""

    def write(self, ids: list[int], num_new: int) -> tuple[list[int], float, float]:
        """The most probable tokens after a prompt, whether or not one of them ends the text; seconds of the prompt, and
        of the tokens behind the first one.
        """


class Scorer(Protocol):
    """A reward model with its tokenizer."""

    num_positions: int

    def ids(self, text: str) -> list[int]:
        """As an `Engine`'s."""

    def render(self, messages: list[dict[str, str]], begin_reply: bool) -> str | None:
        """As an `Engine`'s."""

    def score(self, ids: list[int]) -> float:
        """The reward of a text."""


def read_questions() -> tuple[dict[str, Any], Path]:
    """The questions and the folder of the answers, from the command line."""
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])


def answer(engine: Any, questions: dict[str, Any], folder: Path) -> None:
    """Ask an engine or a scorer everything, and write the answers.

    Of the questions `prompts` and `windows` are token ids. Where they are not given, this model's own ids are taken,
    and the answers hold them for the next one: so a fault of a tokenizer and one of the weights are told apart.
    """
    texts = [engine.ids(text) for text in questions["texts"]]
    chats = [engine.render(messages, begin_reply) for messages in questions["chats"] for begin_reply in (False, True)]
    prompts = questions.get("prompts") or [ids[:MOST_PROMPT_TOKENS] for ids in texts if ids][:MOST_PROMPTS]
    answers: dict[str, Any] = {"ids": texts, "chats": chats, "prompts": prompts, "ends": getattr(engine, "ends", None)}
    if hasattr(engine, "score"):
        answers["rewards"] = [engine.score(ids) for ids in prompts]
    else:
        windows = questions.get("windows") or _windows(engine, questions)
        answers["windows"] = windows
        rows = [_last_logits(engine, ids, questions["last"]) for ids in prompts]
        np.save(folder / "logits.npy", np.concatenate(rows))
        answers["are_log_probabilities"] = hasattr(engine, "next_log_probabilities")
        answers |= _perplexity(engine, windows) | _written(engine, prompts, windows, questions["num_new"])
    answers["imported"] = sorted({name.partition(".")[0] for name in sys.modules})
    (folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")


def _windows(engine: Engine, questions: dict[str, Any]) -> list[list[int]]:
    """The text in windows as long as the model takes, at most `window` tokens, at most `text_tokens` in all."""
    length = min(questions["window"], engine.num_positions)
    ids = engine.ids(questions["text"])[: questions["text_tokens"]]
    windows = [ids[start : start + length] for start in range(0, len(ids), length)]
    return [window for window in windows if len(window) > 1]


def _last_logits(engine: Any, ids: list[int], last: int) -> np.ndarray:
    """(`last` or fewer, V)."""
    if not hasattr(engine, "next_log_probabilities"):
        return engine.logits(ids)[-last:]
    return np.stack(
        [engine.next_log_probabilities(ids[:end]) for end in range(max(1, len(ids) - last + 1), len(ids) + 1)]
    )


def _perplexity(engine: Any, windows: list[list[int]]) -> dict[str, Any]:
    if not hasattr(engine, "logits"):
        return {"loss": None, "num_scored": 0}
    total, count = 0.0, 0
    for window in windows:
        logits = engine.logits(window)[:-1].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        targets = logits[np.arange(len(logits)), window[1:]]
        total += float((np.log(np.exp(logits).sum(-1)) - targets).sum())
        count += len(targets)
    return {"loss": total / count if count else None, "num_scored": count}


def _written(engine: Any, prompts: list[list[int]], windows: list[list[int]], num_new: int) -> dict[str, Any]:
    """Greedy tokens after a few prompts, and the speed: of a whole window as prompt, and of single tokens."""
    num_new = min(num_new, engine.num_positions - MOST_PROMPT_TOKENS)
    written, seconds, count = [], 0.0, 0
    for prompt in prompts[:3]:
        tokens, _, spent = engine.write(prompt, num_new)
        written.append(tokens)
        seconds, count = seconds + spent, count + len(tokens) - 1
    longest = max(windows, key=len, default=prompts[0])
    if hasattr(engine, "logits"):
        start = time.perf_counter()
        engine.logits(longest)
        prefill = len(longest) / (time.perf_counter() - start)
    else:
        prefill = len(longest) / engine.write(longest[: engine.num_positions - 1], 1)[1]
    return {"written": written, "decode_tokens_per_s": count / max(seconds, 1e-9), "prefill_tokens_per_s": prefill}
