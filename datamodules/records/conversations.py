"""A record of instruction data as a conversation, whatever the shape that it is written in."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from datamodules.records.fields import Fields, Turn
from datamodules.records.options import reply_of, right_option
from datamodules.records.prompt_turns import NO_SPEAKER, prompt_turns, read_turn, task_of, with_system
from datamodules.records.shapes import Columns, Shape, detect_shape, shape_in_words
from datamodules.records.turns import Reasoning, UnfitError, tools_of
from datamodules.sources.units import Bad, Record

__all__ = ["Conversation", "Reasoning", "Shape", "conversation_of", "detect_shape", "shape_in_words"]


@dataclass(frozen=True)
class Conversation:
    """What was said, in the form that chat templates take.

    Attributes:
        messages: with `role` (system, developer, user, assistant or tool) and `content` (text, reasoning included as
            `<think>\\n...\\n</think>\\n\\n` before the reply), and where the record has them `tool_calls` (arguments
            parsed to objects), `name` and `tool_call_id`.
        trainable: for each message, whether it may be trained on: it is the assistant's, and the record does not say
            otherwise (`weight: 0`, `train: false`, or a place in a `prompt` of messages).
        tools: JSON schemas.
    """

    messages: list[dict[str, Any]]
    trainable: list[bool]
    tools: list[dict[str, Any]] | None = None


def conversation_of(record: Record, shape: str, columns: Columns | None, reasoning: Reasoning) -> Conversation | Bad:
    """The record as a conversation, or what is wrong with it.

    Alpaca's `instruction` and `input` become one user turn with a newline between them, as LLaMA-Factory joins them;
    so do a question and its `context`. A `system` column is put first where no turn is the system's. Roles may follow
    each other in any order: whether that makes sense is for the chat template to say.

    Args:
        shape: the name that `detect_shape` found.
        columns: the set's own column names by field, as for `detect_shape`.
        reasoning: what becomes of reasoning, which is written as a message's `reasoning`, `reasoning_content` or
            `thinking`, as <think> tags at the beginning of its content, or as a column `reasoning` beside a single
            answer. `drop` leaves it out. `train` and `mask` both keep it in <think> tags.
    """
    try:
        return _conversation(Fields(record, columns), shape, reasoning)
    except UnfitError as unfit:
        return Bad(str(unfit))
    except RecursionError:
        return Bad("JSON nested too deeply")


def _conversation(fields: Fields, shape: str, reasoning: Reasoning) -> Conversation:
    said = [read_turn(turn, reasoning) for turn in READERS[shape](fields, shape)]
    messages = with_system(fields, [message for message, _ in said])
    if all(message["role"] != "assistant" for message in messages):
        raise UnfitError("no turn is the assistant's, so that there is nothing to train on")
    trainable = [False] * (len(messages) - len(said)) + [is_trainable for _, is_trainable in said]
    return Conversation(messages, trainable, tools_of(fields.optional("tools")))


def _answered(answer: str) -> Callable[[Fields, str], Iterator[Turn]]:
    """Reads a prompt, and the answer in this field."""

    def turns(fields: Fields, shape: str) -> Iterator[Turn]:
        yield from prompt_turns(fields, shape)
        yield _answer(fields, answer)

    return turns


def _self_instruct(fields: Fields, shape: str) -> Iterator[Turn]:
    yield from prompt_turns(fields, shape)
    yield _answer(task_of(fields), "output")


def _prompt_completion(fields: Fields, shape: str) -> Iterator[Turn]:
    yield from prompt_turns(fields, shape)
    if not isinstance(fields.optional("completion"), list):
        yield _answer(fields, "completion")
    elif fields.optional("reasoning") is None:
        yield from fields.turns("completion")
    else:
        raise UnfitError("a reasoning beside a completion of several turns; put it into the turn that it belongs to")


def _dialogue(fields: Fields, field: str) -> Iterator[Turn]:
    turns = list(fields.turns(field))
    if all(isinstance(turn.said, str) for turn in turns):
        raise UnfitError(f"{turns[0].where}: {NO_SPEAKER}")
    yield from turns


def _choice(fields: Fields, shape: str) -> Iterator[Turn]:
    """The answer as it is given, or the letter of the option whose place is given."""
    yield from prompt_turns(fields, shape)
    given, column = fields.optional("correct"), fields.column("correct")
    right = right_option(given, fields.options(), column)
    yield _answer(fields, "correct", reply_of(given, right))


def _answer(fields: Fields, field: str, text: str | None = None) -> Turn:
    text = fields.text(field, numbers=True) if text is None else text
    said = {"role": "assistant", "content": text, "reasoning": fields.optional("reasoning")}
    return Turn(f"column {fields.column(field)!r}", said)


READERS: dict[str, Callable[[Fields, str], Iterator[Turn]]] = {
    "messages": lambda fields, _: _dialogue(fields, "messages"),
    "sharegpt": lambda fields, _: _dialogue(fields, "conversations"),
    "instruction-choice": _choice,
    "prompt-choice": _choice,
    "question-choice": _choice,
    "alpaca": _answered("output"),
    "self-instruct": _self_instruct,
    "prompt-completion": _prompt_completion,
    "question-answer": _answered("answer"),
    "input-output": _answered("output"),
}
