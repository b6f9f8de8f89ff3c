"""What a chat template makes of a conversation, and what it leaves out of it, found by rendering the skeleton."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from datamodules.records.conversations import Conversation
from datamodules.sources.surrogates import encodable
from datamodules.templates.skeleton import TOOLS, Part

Write = Callable[..., str]  # (conversation, number of messages, reply=) -> text

WAYS_OUT = {
    "content": "choose one that has a place for it",
    "reasoning": "choose one that writes it, or leave it out with reasoning=drop",
    "call": "choose one that writes calls, such as template=chatml",
    "tools": "choose one that writes tools, such as template=chatml",
    "name": "put it into the content, or take it out",
}

TAKING_TURNS = {
    *((before, "user", after) for before in ("", "system", "assistant") for after in ("assistant", "")),
    *(("user", "assistant", after) for after in ("user", "")),
}


class Rendered(NamedTuple):
    """A document of a conversation.

    Args:
        text: as the template writes it.
        spans: (start, end) in characters of what is in the loss.
        prompt: characters before the last of the trained replies begins, its thoughts included.
    """

    text: str
    spans: list[tuple[int, int]]
    prompt: int = 0


class Aim(NamedTuple):
    """What a conversation is written down for: to `learn` turns of it, to `read` it, or to `reply` to it."""

    what: Literal["learn", "read", "reply"]
    turns: tuple[int, ...] = ()


class UnwritableError(Exception):
    """A template cannot write a conversation; the text goes after "the chat template"."""


class Lacking(NamedTuple):
    """What a template leaves out: the number of a part, or the role of a turn."""

    part: int = -1
    role: str = ""
    like: str = ""


class Probe(NamedTuple):
    """What a template makes of conversations of one form.

    Args:
        lacking: what it leaves out.
        tokens: the control tokens that it writes; None where it does not take the skeleton.
    """

    lacking: Lacking | None
    tokens: list[str] | None

    def reason(self, parts: Sequence[Part], texts: Sequence[str]) -> str | None:
        """What is wrong with a conversation of this form, in words that go after "the chat template".

        Args:
            parts: of the conversation.
            texts: what the template made of it; looked into where the skeleton told nothing.
        """
        if self.tokens is None:
            part = next((part for part in parts if not _is_in(part, texts)), None)
            return None if part is None else _left_out(part)
        if self.lacking is None:
            return None
        if self.lacking.part >= 0:
            return _left_out(parts[self.lacking.part])
        return f"writes a turn of {self.lacking.role} as it writes one of {self.lacking.like}; choose another one"


def rendered(
    jinja: str,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    reply: bool,
    names: Mapping[str, str],
) -> str:
    """The messages as a template writes them; with `reply` up to where the assistant has to begin.

    Raises:
        UnwritableError: the template refuses them, or fails on them, in whatever way: it is a program of somebody's.
        CostError, MemoryError: inside of `bounded`.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    options: dict[str, Any] = {"tools": tools, "add_generation_prompt": reply, **names}
    try:
        return encodable(render_jinja_template([messages], chat_template=jinja, **options)[0][0])
    except MemoryError:
        raise
    except TemplateError as error:
        raise UnwritableError(f"refuses it: {_in_a_line(error)}") from error
    except Exception as error:
        raise UnwritableError(f"cannot write it: {_in_a_line(error)}") from error


def first_lacking(
    parts: Sequence[Part], messages: Sequence[Mapping[str, Any]], documents: Sequence[Rendered], aim: Aim
) -> Lacking | None:
    """The first part that is not where it has to be: what is trained on in its reply, the rest in the text before it.

    Thoughts of earlier replies may be left out, as reasoning models do.
    """
    text = documents[-1].text.lower()
    everywhere = "\n".join(document.text for document in documents).lower()
    trained = "\n".join(one.text[start:end] for one in documents for start, end in one.spans).lower()
    last = aim.turns[-1] if aim.what == "learn" else len(messages) - 1
    is_all_trained = documents[0].spans == [(0, len(documents[0].text))]
    thinks = {last} if is_all_trained or aim.what == "read" else set(aim.turns)
    for number, part in enumerate(parts):
        if part.kind == "detail" or part.turn > last or (part.kind == "reasoning" and part.turn not in thinks):
            continue
        place = text
        if part.turn in aim.turns:
            place = everywhere if part.kind == "reasoning" else trained
        if part.mark not in place:
            return Lacking(number)
    return None


def untold_role(conversation: Conversation, write: Write, told: set[tuple[str, ...]]) -> Lacking | None:
    """The first role whose turns the template writes as if somebody else spoke. Where user and assistant take turns, it
    need not say who speaks.

    Args:
        told: roles between their neighbours of which it is known already that the template tells who speaks.
    """
    messages = conversation.messages
    roles = ["", *(message["role"] for message in messages), ""]
    try:
        text = write(conversation, len(messages))
    except UnwritableError:
        return None
    for number, message in enumerate(messages):
        place = tuple(roles[number : number + 3])
        if place in told or not message["content"] or place in TAKING_TURNS:
            continue
        for other in {"user", "assistant"} - {message["role"]}:
            changed = [*messages[:number], {**message, "role": other}, *messages[number + 1 :]]
            try:
                is_same = (
                    write(Conversation(changed, conversation.trainable, conversation.tools), len(messages)) == text
                )
            except UnwritableError:
                continue
            if is_same:
                return Lacking(role=message["role"], like=other)
        told.add(place)
    return None


def used_tokens(tokens: Sequence[str], jinja: str, write: Write) -> tuple[list[str], list[str]]:
    """Those of the tokens with which a template writes turns, those of results among them, and those that it may write
    around calls and tools.
    """
    system, user = {"role": "system", "content": "a"}, {"role": "user", "content": "b"}
    assistant, result = {"role": "assistant", "content": "c"}, {"role": "tool", "content": "d", "name": "e"}
    call = {"type": "function", "id": "f" * 9, "function": {"name": "e", "arguments": {"g": 1}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    schema = {"name": "e", "description": "h", "parameters": {"type": "object", "properties": {}}}
    tool = {"type": "function", "function": schema}
    talks = [[user, assistant], [system, user, assistant]]
    plain = "\n".join(_attempt(write, talk, None) for talk in talks)
    calls = _attempt(write, [user, calling], [tool])
    results = _attempt(write, [user, calling, {**result, "tool_call_id": "f" * 9}, assistant], [tool])
    turns = [token for token in tokens if token in plain or (token in results and calls and token not in calls)]
    return turns, [token for token in tokens if token not in turns and (token in jinja or token in results)]


def _attempt(write: Write, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
    conversation = Conversation(messages, [False] * len(messages), tools)
    try:
        return write(conversation, len(messages)) + write(conversation, len(messages) - 1, reply=True)
    except UnwritableError:
        return ""


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


def _left_out(part: Part) -> str:
    said = part.text.strip()
    shown = repr(said if len(said) <= 40 else said[:37] + "...")
    if part.turn == TOOLS:
        return f"leaves out of the tools {shown}; {WAYS_OUT['tools']}"
    what = {"content": "what turn {} says", "reasoning": "the reasoning of turn {}", "name": "the name of turn {}"}
    words = what.get(part.kind, "the tool calls of turn {}").format(part.turn + 1)
    return f"leaves out {words}, {shown}; {WAYS_OUT[part.kind]}"


def _is_in(part: Part, texts: Sequence[str]) -> bool:
    """Whether the texts say it, as it stands or as JSON writes it; true where nobody could tell."""
    said = part.text.strip()
    if part.kind in ("detail", "reasoning") or len(said) < 3:
        return True
    return any(form in text for text in texts for form in (said, json.dumps(said, ensure_ascii=False)[1:-1]))
