"""Keys that a set's turns and calls have beside those that all chat templates know: which of them a template writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from datamodules.sources.surrogates import encodable
from datamodules.sources.units import is_empty

MESSAGE_KEYS = ("role", "content", "tool_calls", "name", "tool_call_id")
CALL_KEYS = ("id", "type", "function")

# What a key that nobody reads was probably meant for, by how it is called: a record without it would teach something
# else. Half the names are what other libraries call it.
MEANT_OF_TURNS = {
    **{name: name for name in ("content", "value", "tool_calls", "function_call", "name", "tool_call_id")},
    **dict.fromkeys(("reasoning", "reasoning_content", "thinking", "thought", "thoughts"), "reasoning"),
}
MEANT_OF_CALLS = {
    "name": "name", "function_name": "name",
    **dict.fromkeys(("arguments", "args", "kwargs", "params", "parameters", "input", "inputs"), "arguments"),
}  # fmt: skip
ALIKE = 0.8


class OwnKey(NamedTuple):
    """A key of the turns of a role, or of the calls in them."""

    role: str
    name: str
    of_call: bool = False

    def __str__(self) -> str:
        return f"tool_calls.{self.name}" if self.of_call else self.name

    @property
    def meant(self) -> str | None:
        """The key that it was probably meant to be; None where it is an addition of the set's own."""
        meant = MEANT_OF_CALLS if self.of_call else MEANT_OF_TURNS
        alike = get_close_matches(self.name.lower(), meant, n=1, cutoff=ALIKE)
        return meant[alike[0]] if alike else None


def own_keys(messages: Sequence[Mapping[str, Any]]) -> list[OwnKey]:
    """Those of the messages, each once."""
    found: dict[OwnKey, None] = {}
    for message in messages:
        role = message["role"]
        found.update(dict.fromkeys(OwnKey(role, name) for name in message if name not in MESSAGE_KEYS))
        for call in message.get("tool_calls", ()):
            found.update(dict.fromkeys(OwnKey(role, name, True) for name in call if name not in CALL_KEYS))
    return list(found)


def without(messages: Sequence[Mapping[str, Any]], keys: Iterable[OwnKey]) -> list[dict[str, Any]]:
    """The messages without these keys."""
    left_out = set(keys)

    def kept(message: Mapping[str, Any]) -> dict[str, Any]:
        role = message["role"]
        left = {name: value for name, value in message.items() if OwnKey(role, name) not in left_out}
        if "tool_calls" in left:
            left["tool_calls"] = [
                {name: value for name, value in call.items() if OwnKey(role, name, True) not in left_out}
                for call in left["tool_calls"]
            ]
        return left

    return [kept(message) for message in messages]


def unwritten(messages: Sequence[Mapping[str, Any]], write: Callable[[list[dict[str, Any]]], str]) -> list[OwnKey]:
    """The keys of which a template writes nothing: without them it writes the same."""
    text = write(without(messages, ()))
    return [key for key in own_keys(messages) if write(without(messages, [key])) == text]


def unread_in_words(counts: Mapping[str, int]) -> Iterator[str]:
    """A line to print: which keys were not written, and in how many records; none where there were none."""
    if counts:
        keys = ", ".join(f"{name} ({count:,} records)" for name, count in sorted(counts.items()))
        yield encodable(f"not read: the chat template writes nothing of these keys of turns: {keys}")


def additions(turn: Mapping[str, Any], read: Iterable[str]) -> dict[str, Any]:
    """What an object holds under keys that are not read."""
    known = set(read)
    return {name: value for name, value in turn.items() if name not in known and not is_empty(value)}
