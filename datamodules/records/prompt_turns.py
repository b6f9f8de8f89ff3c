"""What the model is asked: the turns of a record before its reply.

All stages read them here, so that one record asks with the same tokens in fine-tuning, reward modelling and
reinforcement learning.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from datamodules.records.fields import Fields, Turn
from datamodules.records.options import is_listed
from datamodules.records.turns import Reasoning, UnfitError, is_assistants, is_blank, kind_of, message_of, parsed
from datamodules.sources.units import Record

Message = dict[str, Any]

# The field that a prompt stands in, by the shape of the record.
MAIN: dict[str, str] = {
    "messages": "messages", "sharegpt": "conversations", "alpaca": "instruction", "self-instruct": "instruction",
    "prompt-completion": "prompt", "question-answer": "question", "input-output": "input",
    "prompt-pair": "prompt", "sharegpt-pair": "conversations", "messages-pair": "messages",
    "question-pair": "question", "instruction-pair": "instruction", "labelled-prompt": "prompt",
    "labelled-instruction": "instruction", "input-pair": "input", "whole-pair": "chosen",
    "messages-single": "messages", "sharegpt-single": "conversations", "instruction-single": "instruction",
    "prompt-single": "prompt", "question-single": "question", "input-single": "input",
    "instruction-choice": "instruction", "prompt-choice": "prompt", "question-choice": "question",
    "instruction": "instruction", "prompt": "prompt", "question": "question", "input": "input",
}  # fmt: skip
DIALOGUES = ("messages", "conversations")
SYSTEM_ROLES = ("system", "developer")
NO_SPEAKER = "text where an object is expected: {role: user, content: ...} tells who says what"

# How Anthropic's sets write conversations down; what stands before the first mark is nobody's.
TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def prompt_turns(fields: Fields, shape: str) -> Iterator[Turn]:
    """The turns before the reply, none of which is trained on but a history's; see `with_system` for the system's.

    Of a conversation that ends with the assistant's turn, this is the reply, unless the reply has a column of its
    own beside a `prompt`.

    Args:
        shape: one of `MAIN`, as `detect_shape` found it.

    Raises:
        UnfitError: there is no prompt, or it cannot be read.
    """
    main = MAIN[shape]
    if is_dialogue(fields, shape):
        turns = list(fields.turns(main, trainable=False))
        if all(isinstance(turn.said, str) for turn in turns):
            yield _first_text(turns, shape)
            return
        yield from before_reply(turns) if main in DIALOGUES or shape == main else turns
    else:
        yield from _history(fields)
        yield from _question(fields, shape)


def _first_text(turns: Sequence[Turn], shape: str) -> Turn:
    """A list of texts holds what a user asks one after the other, each time behind a reply that is not there."""
    if len(turns) > 1 and shape not in ("messages", MAIN[shape]):
        raise UnfitError(f"{turns[0].where}: {NO_SPEAKER}")
    return turns[0]._replace(said={"role": "user", "content": turns[0].said})


def is_dialogue(fields: Fields, shape: str) -> bool:
    """Whether the prompt is a list of turns and no text."""
    return MAIN[shape] in DIALOGUES or isinstance(fields.optional(MAIN[shape]), list)


def before_reply(turns: Sequence[Turn]) -> Sequence[Turn]:
    """The turns without the assistant's at their end."""
    return turns[:-1] if turns and is_assistants(turns[-1].said) else turns


def question_text(fields: Fields, shape: str) -> str:
    """What the user says: the field, below it the `input` and the `context` that belong to it, and its options."""
    main = MAIN[shape]
    fields = task_of(fields) if shape == "self-instruct" else fields
    # Self-instruct sets have tasks that are all in their input.
    first = fields.optional_text(main) if main == "instruction" else fields.text(main)
    # A list of columns is all that the question is made of, but for what is mapped too.
    is_all = isinstance(fields.mapped(main), list)
    others = [name for name in ("input", "context") if name != main and (fields.mapped(name) or not is_all)]
    parts = [first, *(fields.optional_text(name, numbers=True) for name in others)]
    if not any(parts):
        raise UnfitError(f"column {fields.column(main)!r} is empty")
    text = "\n".join(filter(None, parts))
    needs_options = shape.endswith("-choice")
    options = fields.options() if needs_options or fields.mapped("options") or not is_all else []
    if needs_options and not options:
        fields.column("options")
        raise UnfitError("it has no options to choose from")
    return text if is_listed(options, text) else "\n".join([text, *(option.line for option in options)])


def with_system(fields: Fields, messages: list[Message]) -> list[Message]:
    """The messages behind what the column `system` says, unless they hold a system's turn themselves."""
    system = fields.optional_text("system")
    if not system or any(message["role"] in SYSTEM_ROLES for message in messages):
        return messages
    return [{"role": "system", "content": system}, *messages]


def read_turn(turn: Turn, reasoning: Reasoning = "train") -> tuple[Message, bool]:
    """The turn as a message, and whether it may be trained on; raises `UnfitError` that says where the turn is."""
    try:
        message, is_trainable = message_of(turn.said, reasoning)
    except UnfitError as unfit:
        raise UnfitError(f"{turn.where}: {unfit}") from unfit
    return message, is_trainable and turn.trainable


def task_of(fields: Fields) -> Fields:
    """A task of self-instruct with its first instance, as one conversation comes of a record."""
    instances = parsed(fields.optional("instances"), "instances")
    first = instances[0] if isinstance(instances, list) and instances else None
    if not isinstance(first, dict):
        raise UnfitError("instances holds no list of inputs and outputs")
    task: Record = {"instruction": fields.text("instruction")}
    return Fields(task | first, None)


def transcript(text: str, column: str) -> list[Turn]:
    """The turns of a text in Anthropic's form; none where it is none."""
    before, *parts = TRANSCRIPT.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if before.strip():
        return []
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return [
        Turn(f"turn {number} of {column}", {"role": SPEAKERS[speaker], "content": said.strip()})
        for number, (speaker, said) in enumerate(spoken, 1)
    ]


def _question(fields: Fields, shape: str) -> Iterator[Turn]:
    main, text = MAIN[shape], question_text(fields, shape)
    turns = transcript(text, fields.column(main)) if main == "prompt" else []
    # One mark alone may be the user's own words.
    if not text.startswith("\n\n") and len(turns) < 2:
        turns = []
    if not turns:
        yield Turn(main, {"role": "user", "content": text})
    # A transcript ends where the reply is to begin.
    yield from turns[:-1] if turns and is_blank(turns[-1].said) else turns


def _history(fields: Fields) -> Iterator[Turn]:
    history = parsed(fields.optional("history") or [], "history")
    if not isinstance(history, list):
        raise UnfitError(f"history holds {kind_of(history)}, not a list of pairs")
    for number, pair in enumerate(history, 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise UnfitError(f"history: its entry {number} is not a pair of a question and its answer")
        yield Turn(f"history, pair {number}", {"role": "user", "content": pair[0]})
        yield Turn(f"history, pair {number}", {"role": "assistant", "content": pair[1]})
