"""Rows of any values as lines of JSON that every reader takes."""

import json
import math
from collections.abc import Mapping
from typing import Any

from llm_lightning_safety.json_values import json_default

DEEPEST = 100
"""Levels of lists and dictionaries that are written: readers of JSON give up at some depth, Python's at about 1,000."""


def json_line(row: Mapping[str, Any]) -> bytes:
    """The row as a line of JSON in UTF-8.

    Data have more types than JSON: dates and times become ISO 8601, decimals text with all of their digits, bytes the
    text that they are, else base64, and numbers that are not finite null; arrays become lists, anything else its
    `str`. What is nested deeper than `DEEPEST` is null. Lone surrogates, which JSON can carry and UTF-8 cannot, stay
    escaped.
    """
    value = json_value(row)
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value).encode() + b"\n"


def json_value(value: Any, depth: int = 0) -> Any:
    """The value of types that JSON has; see `json_line`."""
    if value is None or isinstance(value, bool | str) or depth > DEEPEST:
        return value if isinstance(value, bool | str) else None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(key): json_value(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(one, depth + 1) for one in value]
    return json_value(json_default(value), depth + 1)


def _key(key: Any) -> str:
    value = json_value(key)
    return value if isinstance(value, str) else json.dumps(value)
