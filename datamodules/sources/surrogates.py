"""Halves of UTF-16 pairs, which JSON can carry and no UTF-8 encoder takes."""

from typing import Any


def encodable(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which JSON can carry ("\\ud800") and no UTF-8 encoder takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def is_encodable(value: Any) -> bool:
    """Whether all texts in a value of JSON, keys included, can be written as UTF-8: no lone surrogates."""
    if isinstance(value, str):
        return encodable(value) == value
    if isinstance(value, dict):
        return all(is_encodable(key) and is_encodable(inner) for key, inner in value.items())
    return all(map(is_encodable, value)) if isinstance(value, list | tuple) else True
