"""Pairs of responses of which people, or a rule, said which is better."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llm_lightning.errors import UserError
from llm_lightning.rewards.scoring import Prompt


class LabelledPair(NamedTuple):
    """A request, the better response, and the worse one."""

    prompt: Prompt
    chosen: str
    rejected: str


def read_pairs(path: str, most: int) -> list[LabelledPair]:
    """The first pairs of a .jsonl file with the columns `prompt`, `chosen` and `rejected`.

    Args:
        path: the file. A prompt is a text or a list of messages; a response is a text, or messages that end with it.
        most: pairs at most.

    Raises:
        UserError: the file cannot be read, a line is no pair, or there is none.
    """
    pairs = list[LabelledPair]()
    try:
        for number, line in _lines(path):
            pairs.append(_pair(line, f"Judge.agreement.path={path}, line {number}"))
            if len(pairs) == most:
                break
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Judge.agreement.path={path}: it cannot be read: {error}") from error
    if not pairs:
        raise UserError(f"Judge.agreement.path={path}: there is no pair in it.")
    return pairs


def _lines(path: str) -> Iterator[tuple[int, str]]:
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def _pair(line: str, where: str) -> LabelledPair:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: it is no JSON ({error}).") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: it is no record with prompt, chosen and rejected.")
    prompt = record.get("prompt")
    messages = prompt if isinstance(prompt, list) else []
    is_conversation = all(isinstance(each, dict) and {"role", "content"} <= set(each) for each in messages)
    if not prompt or not (isinstance(prompt, str) or (messages and is_conversation)):
        raise UserError(f"{where}: its prompt is neither a text nor a list of messages.")
    pair = LabelledPair(prompt, *(_response(record.get(name), name, where) for name in ("chosen", "rejected")))
    if pair.chosen == pair.rejected:
        raise UserError(f"{where}: both responses are the same.")
    return pair


def _response(value: Any, name: str, where: str) -> str:
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if not isinstance(value, str):
        raise UserError(f"{where}: its {name} response is neither a text nor a list of messages.")
    return value
