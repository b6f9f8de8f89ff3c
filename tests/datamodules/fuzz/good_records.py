"""Records of every shape that the DataModules read, each with a marker in what asks and in what answers."""

from collections.abc import Callable
from typing import Any

Record = dict[str, Any]
Shape = Callable[[str, str], Record]
"""From a question and an answer to a record that holds them."""

TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}


def _messages(q: str, a: str) -> list[Record]:
    return [{"role": "user", "content": q}, {"role": "assistant", "content": a}]


def _said(q: str, a: str) -> list[Record]:
    return [{"from": "human", "value": q}, {"from": "gpt", "value": a}]


def _parts(text: str) -> list[Record]:
    return [{"type": "text", "text": text}]


INSTRUCTION: dict[str, Shape] = {
    "messages": lambda q, a: {"messages": _messages(q, a)},
    "messages-system": lambda q, a: {"messages": [{"role": "system", "content": "Be brief."}, *_messages(q, a)]},
    "messages-parts": lambda q, a: {
        "messages": [{"role": "user", "content": _parts(q)}, {"role": "assistant", "content": _parts(a)}]
    },
    "sharegpt": lambda q, a: {"conversations": _said(q, a)},
    "alpaca": lambda q, a: {"instruction": "Answer.", "input": q, "output": a},
    "prompt-completion": lambda q, a: {"prompt": q, "completion": a, "id": 3},
    "question-answer": lambda q, a: {"question": q, "answer": a, "context": "Once."},
    "history": lambda q, a: {"instruction": q, "output": a, "history": [["One?", "One."]], "system": "Count."},
    "two-turns": lambda q, a: {"messages": [*_messages("Before?", "Yes."), *_messages(q, a)]},
}
PREFERENCE: dict[str, Shape] = {
    "prompt-pair": lambda q, a: {"prompt": q, "chosen": a, "rejected": "No."},
    "whole-pair": lambda q, a: {"chosen": _messages(q, a), "rejected": _messages(q, "No.")},
    "human": lambda q, a: {
        "chosen": f"\n\nHuman: {q}\n\nAssistant: {a}",
        "rejected": f"\n\nHuman: {q}\n\nAssistant: No.",
    },
    "messages-pair": lambda q, a: {
        "messages": _messages(q, a)[:1],
        "chosen": {"role": "assistant", "content": a},
        "rejected": {"role": "assistant", "content": "No."},
    },
    "question-pair": lambda q, a: {"question": q, "response_j": a, "response_k": "No."},
    "sharegpt-pair": lambda q, a: {
        "conversations": _said(q, a)[:1],
        "chosen": {"from": "gpt", "value": a},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "labelled": lambda q, a: {"instruction": q, "output_1": a, "output_2": "No.", "label": 1},
    "scores": lambda q, a: {"prompt": q, "chosen": a, "rejected": "No.", "chosen_score": 4.5, "rejected_score": 1},
    "prompt-single": lambda q, a: {"prompt": q, "completion": a, "label": True},
    "messages-single": lambda q, a: {"messages": _messages(q, a), "feedback": "good"},
}
PROMPT: dict[str, Shape] = {
    "prompt": lambda q, a: {"prompt": q, "answer": a},
    "question": lambda q, a: {"question": q, "gold": a, "level": 3},
    "messages-only": lambda q, a: {"messages": _messages(q, a)[:1], "gold": a},
    "with-reply": lambda q, a: {"messages": _messages(q, a), "kwargs": [{"num_words": 7, "keywords": None}]},
    "context": lambda q, a: {"question": q, "context": "Once.", "answer": a},
}
TEXT: dict[str, Shape] = {
    "text": lambda q, a: {"text": f"{q} {a}"},
    "content": lambda q, a: {"content": f"{q} {a}", "id": 3},
    "text-and-more": lambda q, a: {"meta": {"source": "x"}, "text": f"{q} {a}"},
}
