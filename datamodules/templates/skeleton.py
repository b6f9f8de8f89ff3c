"""A conversation's skeleton: the same turns, calls and tools with a mark in place of every text.

What a chat template makes of the marks tells what it makes of any conversation of this form: which parts it leaves out,
and which control tokens it writes itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from datamodules.records.conversations import Conversation
from datamodules.records.own_keys import CALL_KEYS, MESSAGE_KEYS

Kind = Literal["content", "reasoning", "call", "name", "tools", "detail"]

TOOLS = -1  # the turn of what stands beside the turns
THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
TAGS = re.compile(r"(</?think>)")
NAMED = ("properties", "patternProperties", "$defs", "definitions")  # of a JSON schema: objects by names of one's own
FIRST_NUMBER = 7_000_001


class Part(NamedTuple):
    """A text of a conversation, and the mark in its place.

    Args:
        turn: its number, from 0; `TOOLS` for a tool's schema.
        kind: what it is; a `detail` need not be written down.
        text: as the record has it.
        mark: as the skeleton has it.
    """

    turn: int
    kind: Kind
    text: str
    mark: str


class Skeleton(NamedTuple):
    """The conversation of marks, and what they stand for."""

    conversation: Conversation
    parts: list[Part]


def skeleton_of(conversation: Conversation, keep_names: bool = False) -> Skeleton:
    """The same for all conversations of one form. Ids keep their length, which some templates ask for.

    Args:
        keep_names: leave the names of functions and arguments as they are, for templates that look for some of them.
    """
    marker = _Marker(keep_names)
    called: set[str] = set()
    messages = [marker.message(turn, message, called) for turn, message in enumerate(conversation.messages)]
    tools = None if conversation.tools is None else [marker.tool(tool) for tool in conversation.tools]
    return Skeleton(Conversation(messages, conversation.trainable, tools), marker.parts)


class _Marker:
    def __init__(self, keep_names: bool) -> None:
        self.keep_names = keep_names
        self.parts: list[Part] = []
        self.ids: dict[str, str] = {}

    def message(self, turn: int, message: dict[str, Any], called: set[str]) -> dict[str, Any]:
        marked = {**message, "content": self.content(turn, message)}
        if "tool_calls" in message:
            marked["tool_calls"] = [self.call(turn, call) for call in message["tool_calls"]]
            called.update(call["function"]["name"] for call in message["tool_calls"])
        if "tool_call_id" in message:
            marked["tool_call_id"] = self.id(turn, message["tool_call_id"])
        if "name" in message:
            # A result that names the function that was called says nothing new.
            is_known = message["role"] == "tool" and message["name"] in called
            marked["name"] = self.text(turn, "detail" if is_known else "name", message["name"])
        return marked | self.others(turn, message, MESSAGE_KEYS)

    def others(self, turn: int, one: dict[str, Any], known: Sequence[str]) -> dict[str, Any]:
        """What a message or a call has under keys of the set's own."""
        return {key: self.other(turn, value) for key, value in one.items() if key not in known}

    def other(self, turn: int, value: Any) -> Any:
        """Only a template that looks for them knows the names within it: they stay."""
        if isinstance(value, dict):
            return {key: self.other(turn, inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.other(turn, inner) for inner in value]
        return self.value(turn, "detail", value)

    def content(self, turn: int, message: dict[str, Any]) -> str:
        """Thinking tags stay, since templates look for them."""
        content = message.get("content") or ""
        thought = THOUGHT.match(content) if message["role"] == "assistant" else None
        split = thought.end() if thought else 0
        return self._pieces(turn, "reasoning", content[:split]) + self._pieces(turn, "content", content[split:])

    def _pieces(self, turn: int, kind: Kind, text: str) -> str:
        if text.strip() and not TAGS.search(text):
            return self.text(turn, kind, text)
        return "".join(
            piece if TAGS.fullmatch(piece) or not piece.strip() else _around(piece, self.text(turn, kind, piece))
            for piece in TAGS.split(text)
        )

    def call(self, turn: int, call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        name = self.name(turn, "call", function["name"])
        arguments = self.value(turn, "call", function["arguments"])
        marked = {**call, "function": {"name": name, "arguments": arguments}} | self.others(turn, call, CALL_KEYS)
        return marked | {"id": self.id(turn, call["id"])} if "id" in call else marked

    def tool(self, tool: Any) -> Any:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            return self.schema(tool, "tools")
        marked = {}
        for key, value in function.items():
            if key in ("name", "description") and isinstance(value, str) and value.strip():
                marked[key] = (self.name if key == "name" else self.text)(TOOLS, "tools", value)
            else:
                marked[key] = self.schema(value, "detail", is_parameters=key == "parameters")
        return {key: marked if key == "function" else self.schema(value, "detail", key) for key, value in tool.items()}

    def schema(self, value: Any, kind: Kind, key: str = "", is_parameters: bool = False) -> Any:
        """A JSON schema: its keywords and types stay, since templates look for them."""
        if key == "type" and _is_type(value):
            return value
        if not isinstance(value, dict):
            many = isinstance(value, list)
            return [self.schema(inner, kind) for inner in value] if many else self.value(TOOLS, kind, value)
        marked: dict[str, Any] = {}
        names: dict[str, str] = {}
        for keyword, inner in value.items():
            if keyword in NAMED and isinstance(inner, dict):
                for name in inner:
                    names[name] = self.name(TOOLS, "tools" if is_parameters else "detail", name)
                marked[keyword] = {names[name]: self.schema(one, "detail") for name, one in inner.items()}
            else:
                marked[keyword] = self.schema(inner, kind, keyword)
        required = value.get("required")
        if isinstance(required, list):
            marked["required"] = [names.get(name, name) if isinstance(name, str) else name for name in required]
        return marked

    def value(self, turn: int, kind: Kind, value: Any) -> Any:
        """Any JSON; true, false and null stay, as there is nothing to put into their place."""
        if isinstance(value, str):
            return self.text(turn, kind, value) if value.strip() else value
        if isinstance(value, dict):
            return {self.name(turn, kind, key): self.value(turn, kind, inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.value(turn, kind, inner) for inner in value]
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        number = FIRST_NUMBER + len(self.parts)
        self.parts.append(Part(turn, kind, str(value), str(number)))
        return number if isinstance(value, int) else number + 0.5

    def id(self, turn: int, text: str) -> str:
        mark = self.ids.setdefault(text, f"{len(self.ids):0{len(text)}d}")
        self.parts.append(Part(turn, "detail", text, mark))
        return mark

    def name(self, turn: int, kind: Kind, text: str) -> str:
        if not self.keep_names:
            return self.text(turn, kind, text)
        self.parts.append(Part(turn, kind, text, text.lower()))
        return text

    def text(self, turn: int, kind: Kind, text: str) -> str:
        mark = f"zq{len(self.parts)}qz"
        self.parts.append(Part(turn, kind, text, mark))
        return mark


def _around(text: str, mark: str) -> str:
    """The mark, with the white space that a text begins and ends with."""
    start = len(text) - len(text.lstrip())
    return text[:start] + mark + text[len(text.rstrip()) :]


def _is_type(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))
