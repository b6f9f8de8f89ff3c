"""One turn of a conversation as chat templates take it, from the ways in which data sets write it."""

import json
import math
from decimal import Decimal
from typing import Any, Literal

from datamodules.records.own_keys import CALL_KEYS, additions
from datamodules.sources.surrogates import encodable
from datamodules.sources.units import Whole, is_empty
from llm_lightning_safety.json_values import json_default

Reasoning = Literal["train", "mask", "drop"]

ROLES = {
    "system": "system", "developer": "developer",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "ipython": "tool",
}  # fmt: skip
ROLES_OF_CALLS = ("function_call", "tool_call")  # their text is the call, as JSON
REASONING_KEYS = ("reasoning", "reasoning_content", "thinking")
READ_KEYS = ("role", "from", "name", "tool_call_id", "weight", "train")
ARGUMENT_KEYS = ("arguments", "parameters")
MEDIA = ("image", "audio", "video", "input_image", "input_audio")  # what keys that hold some begin with
THINK, END_THINK = "<think>", "</think>"
JSON_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}


class UnfitError(Exception):
    """A record cannot be used; the text says why."""


def message_of(turn: Any, reasoning: Reasoning) -> tuple[dict[str, Any], bool]:
    """A turn as a message, and whether the record lets it be trained on.

    Args:
        turn: an object with `role` and `content`, or `from` and `value`. Null counts as absent. What else it holds
            stays in the message, for a template that writes it.
        reasoning: `drop` leaves the assistant's reasoning out; else it stands before the reply, in <think> tags.

    Raises:
        UnfitError: it is no such object, its role is unknown, its content is missing, of a wrong type or, where the
            assistant speaks, empty; or it holds an image, a sound or a video.
    """
    if not isinstance(turn, dict):
        raise UnfitError(f"{kind_of(turn)} where an object is expected")
    turn = {key: value for key, value in turn.items() if value is not None}
    said_role, role = _role(turn)
    content = turn.get("content", turn.get("value"))
    call_key = (
        "function_call" if is_empty(turn.get("tool_calls")) else "tool_calls"
    )  # the former is OpenAI's older form
    calls = turn.get(call_key)
    others = _others(turn, role, call_key)
    if said_role in ROLES_OF_CALLS:
        if not is_empty(calls):
            raise UnfitError(f"its role is {said_role}, so that its content is a call, and it has {call_key} too")
        content, calls = "", content
    calls = [] if is_empty(calls) else _tool_calls(calls)
    if content is None and not calls:
        raise UnfitError("it has no content")
    text = "" if content is None else _content(content, numbers=role in ("assistant", "tool"))
    if role == "assistant":
        thoughts = [text_of(turn[key], key) for key in REASONING_KEYS if not is_empty(turn.get(key))]
        text = _with_reasoning(text, thoughts, reasoning, may_be_empty=bool(calls))
    message: dict[str, Any] = {"role": role, "content": text}
    if calls:
        message["tool_calls"] = calls
    for key in ("name", "tool_call_id"):
        if not is_empty(turn.get(key)):
            message[key] = text_of(turn[key], key)
    return message | others, role == "assistant" and _is_trainable(turn)


def tools_of(value: Any) -> list[dict[str, Any]] | None:
    """Tool schemas as chat templates take them, from a list of them or from its JSON.

    A schema without its envelope is put into one: {"type": "function", "function": {"name": ...}}.

    Raises:
        UnfitError: they are not objects.
    """
    tools = parsed(value, "tools")
    tools = [tools] if isinstance(tools, dict) else tools
    if is_empty(tools):
        return None
    if not isinstance(tools, list):
        raise UnfitError(f"tools holds {kind_of(tools)}, not a list")
    return [_tool(parsed(tool, "tools")) for tool in tools]


def text_of(value: Any, what: str, numbers: bool = False) -> str:
    """The text, fit for any tokenizer: lone surrogates become U+FFFD.

    Args:
        numbers: whether a number may stand for its text, as Python writes it.

    Raises:
        UnfitError: it is no text, or holds NUL, at which some tokenizers stop reading.
    """
    if numbers and isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise UnfitError(f"{what} holds {value}, which is no number to write down")
        return str(value)
    if not isinstance(value, str):
        raise UnfitError(f"{what} holds {kind_of(value)}, not text")
    if "\0" in value:
        raise UnfitError(f"{what} holds a NUL character (U+0000), its character {value.index(chr(0)) + 1}")
    return encodable(value)


def parsed(value: Any, what: str) -> Any:
    """The value, or what its text says as JSON.

    Raises:
        UnfitError: it is text and no JSON.
    """
    if not isinstance(value, str):
        return _clean(value)
    try:
        return _clean(json.loads(value))
    except ValueError as error:
        raise UnfitError(f"{what} holds text that is not JSON ({error})") from error


def without_nulls(value: Any) -> Any:
    """The value without the keys whose value is null, in whatever depth, but for what was stored as JSON."""
    if isinstance(value, Whole):
        return value
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


def spoken(turn: Any) -> list[Any]:
    """The turns that an object says by the roles as keys, {"user": ..., "assistant": ...}; else the turn alone."""
    if not isinstance(turn, dict) or not turn or not all(key.lower() in ROLES for key in turn):
        return [turn]
    return [{"role": role, "content": said} for role, said in turn.items() if said is not None]


def is_assistants(turn: Any) -> bool:
    """Whether a turn is the assistant's, whatever else is wrong with it."""
    try:
        return _role(turn)[1] == "assistant" if isinstance(turn, dict) else False
    except UnfitError:
        return False


def is_blank(turn: Any) -> bool:
    """Whether a turn says nothing: its text is null or blank, and it calls no tool."""
    if not isinstance(turn, dict) or not {"content", "value"} & turn.keys():
        return False
    content = turn.get("content", turn.get("value"))
    blank = content is None or (isinstance(content, str) and not content.strip())
    return blank and is_empty(turn.get("tool_calls")) and is_empty(turn.get("function_call"))


def kind_of(value: Any) -> str:
    """What a value is, in the words of JSON."""
    kind = dict if isinstance(value, dict) else type(value)
    return "null" if value is None else JSON_KINDS.get(kind, kind.__name__)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    if isinstance(value, dict):
        return {encodable(key): _clean(inner) for key, inner in value.items()}
    return value


def _role(turn: dict[str, Any]) -> tuple[str, str]:
    said = turn.get("role", turn.get("from"))
    if said is None:
        raise UnfitError("it has no role")
    if not isinstance(said, str):
        raise UnfitError(f"role holds {kind_of(said)}, not text")
    role = ROLES.get(said.lower())
    if role is None:
        raise UnfitError(f"unknown role {said[:40]!r}; known are: {', '.join(ROLES)}")
    return said.lower(), role


def _content(value: Any, numbers: bool) -> str:
    """Text, or the text of all parts, one directly after the other as templates write them."""
    if not isinstance(value, list):
        return text_of(value, "content", numbers)
    texts = []
    for part in value:
        if not isinstance(part, dict):
            raise UnfitError(f"content holds a list with {kind_of(part)} in it, where parts are objects")
        if part.get("type") != "text":
            raise UnfitError(
                f"content holds a part of type {str(part.get('type'))[:40]!r}; only text can be trained on"
            )
        texts.append(text_of(part.get("text"), "a part of content"))
    return "".join(texts)


def _others(turn: dict[str, Any], role: str, call_key: str) -> dict[str, Any]:
    """What the turn holds under other keys than those that are read here, as JSON has it."""
    text_keys = [key for key in ("content", "value") if turn.get(key) == turn.get("content", turn.get("value"))]
    others = additions(turn, [*READ_KEYS, *text_keys, call_key, *(REASONING_KEYS if role == "assistant" else ())])
    if media := next((key for key, value in others.items() if key.lower().startswith(MEDIA) and value), None):
        raise UnfitError(f"it holds {media}; only text can be trained on")
    return _plain(others)


def _plain(value: Any) -> Any:
    """The value as JSON has it: columnar data know more types."""
    return _clean(json.loads(json.dumps(value, default=json_default)))


def _with_reasoning(text: str, thoughts: list[str], reasoning: Reasoning, may_be_empty: bool) -> str:
    inline, reply = _split(text)
    if not reply.strip() and not may_be_empty:
        raise UnfitError("the reply is empty")
    if any(END_THINK in thought for thought in thoughts):
        raise UnfitError(f"its reasoning spells {END_THINK}, which would end it; take the tags out of it")
    given = list(dict.fromkeys(thought.strip() for thought in (*thoughts, inline or "") if thought.strip()))
    if len(given) > 1:
        raise UnfitError(
            f"it has two different reasonings (of {' and '.join(str(len(text)) for text in given)} letters)"
        )
    if reasoning == "drop" or (not given and inline is None):
        return reply
    return f"{THINK}\n{given[0] if given else ''}\n{END_THINK}\n\n{reply}"


def _split(text: str) -> tuple[str | None, str]:
    """(reasoning, reply) of a content that begins with <think>; a tag further on is text like any other."""
    start = text.lstrip()
    if start.startswith(THINK):
        inside, end, reply = start.removeprefix(THINK).partition(END_THINK)
        if not end:
            raise UnfitError(f"content opens {THINK} and never closes it")
        return inside, reply.lstrip()
    before, end, _ = text.partition(END_THINK)
    if end and THINK not in before:
        raise UnfitError(f"content closes {END_THINK} and never opened it; write {THINK} where the reasoning begins")
    return None, text


def _tool_calls(value: Any) -> list[dict[str, Any]]:
    calls = parsed(value, "tool_calls")
    return [_tool_call(call) for call in (calls if isinstance(calls, list) else [calls])]


def _tool_call(call: Any) -> dict[str, Any]:
    inner = (call.get("function") or call) if isinstance(call, dict) else call
    if not isinstance(inner, dict):
        raise UnfitError(f"tool_calls holds {kind_of(inner)} where a call is expected")
    name = inner.get("name")
    if not isinstance(name, str) or not name:
        raise UnfitError("tool_calls holds a call without the name of a function")
    given = next((inner[key] for key in ARGUMENT_KEYS if inner.get(key) is not None), None)
    arguments = {} if is_empty(given) else parsed(given, f"arguments of {name}")
    if not isinstance(arguments, dict):
        raise UnfitError(f"arguments of {name} hold {kind_of(arguments)}, not an object")
    own_id = {} if is_empty(call.get("id")) else {"id": text_of(call["id"], "id")}
    others = additions(call | inner, [*CALL_KEYS, "name", *ARGUMENT_KEYS])
    return own_id | {"type": "function", "function": {"name": name, "arguments": arguments}} | _plain(others)


def _tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise UnfitError(f"tools holds {kind_of(tool)} where a schema is expected")
    if "function" in tool or "name" not in tool:
        return tool
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _is_trainable(turn: dict[str, Any]) -> bool:
    """What OpenAI's `weight` and axolotl's `train` say."""
    for key in ("weight", "train"):
        if turn.get(key, 1) not in (0, 1):
            raise UnfitError(f"{key} is {str(turn[key])[:40]}; it can be 0 or 1, false or true")
    return bool(turn.get("weight", 1)) and bool(turn.get("train", 1))
