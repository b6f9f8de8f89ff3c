"""A record of instruction data as a conversation, whatever the shape that it is written in."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from datamodules.record_shapes import USUAL_NAMES, Shape, column_of, detect_shape, is_empty, shape_in_words
from datamodules.turns import Reasoning, UnfitError, kind_of, message_of, parsed, text_of, tools_of
from datamodules.units import Bad, Record

__all__ = ["Conversation", "Reasoning", "Shape", "conversation_of", "detect_shape", "shape_in_words"]


@dataclass(frozen=True)
class Conversation:
    """What was said, in the form that chat templates take.

    Attributes:
        messages: with `role` (system, developer, user, assistant or tool) and `content` (text, reasoning included as
            `<think>\\n...\\n</think>\\n\\n` before the answer), and where the record has them `tool_calls` (arguments
            parsed to objects), `name` and `tool_call_id`.
        trainable: for each message, whether it may be learned: it is the assistant's, and the record does not say
            otherwise (`weight: 0`, `train: false`, or a place in a `prompt` of messages).
        tools: JSON schemas.
    """

    messages: list[dict[str, Any]]
    trainable: list[bool]
    tools: list[dict[str, Any]] | None = None


class Turn(NamedTuple):
    """A turn as a record holds it: where it stands there, what it is, and whether it may be learned."""

    where: str
    said: Any
    learned: bool = True


class Fields:
    """A record, asked for its fields."""

    def __init__(self, record: Record, columns: Mapping[str, str] | None) -> None:
        self.record = record
        self.columns = columns

    def column(self, field: str) -> str:
        """The name of the field's column; raises `UnfitError` where there is none."""
        column = column_of(self.record, field, self.columns)
        if column is None:
            name = (self.columns or {}).get(field) or " or ".join(USUAL_NAMES.get(field, (field,)))
            raise UnfitError(f"no column {name}; it has: {', '.join(str(name)[:40] for name in self.record)}")
        return column

    def optional(self, field: str) -> Any:
        """The field's value; None where it is absent or empty."""
        column = column_of(self.record, field, self.columns)
        return None if column is None or is_empty(self.record[column]) else self.record[column]

    def optional_text(self, field: str) -> str:
        """The field's text; empty where it is absent."""
        value = self.optional(field)
        return "" if value is None else text_of(value, f"column {self.column(field)!r}")

    def text(self, field: str) -> str:
        """The field's text; raises `UnfitError` where there is none."""
        column = self.column(field)
        text = text_of(self.record[column], f"column {column!r}")
        if not text.strip():
            raise UnfitError(f"column {column!r} is empty")
        return text

    def turns(self, field: str, learned: bool = True) -> Iterator[Turn]:
        """The turns in a list; raises `UnfitError` where the field holds none."""
        column = self.column(field)
        turns = self.record[column]
        if isinstance(turns, str):
            turns = parsed(turns, f"column {column!r}")
        if not isinstance(turns, list):
            raise UnfitError(f"column {column!r} holds {kind_of(turns)}, not a list of turns")
        if not turns:
            raise UnfitError(f"column {column!r} has no turns")
        return (Turn(f"turn {number} of {column}", turn, learned) for number, turn in enumerate(turns, 1))


def conversation_of(
    record: Record, shape: str, columns: Mapping[str, str] | None, reasoning: Reasoning
) -> Conversation | Bad:
    """The record as a conversation, or what is wrong with it.

    Alpaca's `instruction` and `input` become one user turn with a newline between them, as LLaMA-Factory joins them.
    A `system` column is put first where no turn is the system's. Roles may follow each other in any order: whether
    that makes sense is for the chat template to say.

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
    messages: list[dict[str, Any]] = []
    trainable: list[bool] = []
    for turn in READERS[shape](fields):
        try:
            message, is_learned = message_of(turn.said, reasoning)
        except UnfitError as unfit:
            raise UnfitError(f"{turn.where}: {unfit}") from unfit
        messages.append(message)
        trainable.append(is_learned and turn.learned)
    roles = {message["role"] for message in messages}
    if "assistant" not in roles:
        raise UnfitError("no turn is the assistant's, so that there is nothing to learn")
    system = fields.optional_text("system")
    if system and roles.isdisjoint({"system", "developer"}):
        messages.insert(0, {"role": "system", "content": system})
        trainable.insert(0, False)
    return Conversation(messages, trainable, tools_of(fields.optional("tools")))


def _alpaca(fields: Fields) -> Iterator[Turn]:
    history = parsed(fields.optional("history") or [], "history")
    if not isinstance(history, list):
        raise UnfitError(f"history holds {kind_of(history)}, not a list of pairs")
    for number, pair in enumerate(history, 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise UnfitError(f"history: its entry {number} is not a pair of a question and its answer")
        yield Turn(f"history, pair {number}", {"role": "user", "content": pair[0]})
        yield Turn(f"history, pair {number}", {"role": "assistant", "content": pair[1]})
    # Self-instruct sets have tasks that are all in their input.
    question = [fields.optional_text("instruction"), fields.optional_text("input")]
    if not any(question):
        raise UnfitError(f"column {fields.column('instruction')!r} is empty")
    yield Turn("instruction", {"role": "user", "content": "\n".join(filter(None, question))})
    yield _answer(fields, "output")


def _self_instruct(fields: Fields) -> Iterator[Turn]:
    """The task's first instance, as one conversation comes of a record."""
    instances = parsed(fields.record[fields.column("instances")], "instances")
    first = instances[0] if isinstance(instances, list) and instances else None
    if not isinstance(first, dict):
        raise UnfitError("instances holds no list of inputs and outputs")
    yield from _alpaca(Fields({"instruction": fields.text("instruction")} | first, None))


def _prompt_completion(fields: Fields) -> Iterator[Turn]:
    if isinstance(fields.optional("prompt"), list):
        yield from fields.turns("prompt", learned=False)
    else:
        yield Turn("prompt", {"role": "user", "content": fields.text("prompt")})
    if not isinstance(fields.optional("completion"), list):
        yield _answer(fields, "completion")
    elif fields.optional("reasoning") is None:
        yield from fields.turns("completion")
    else:
        raise UnfitError("a reasoning beside a completion of several turns; put it into the turn that it belongs to")


def _question_answer(fields: Fields) -> Iterator[Turn]:
    yield Turn("question", {"role": "user", "content": fields.text("question")})
    yield _answer(fields, "answer")


def _answer(fields: Fields, field: str) -> Turn:
    said = {"role": "assistant", "content": fields.text(field), "reasoning": fields.optional("reasoning")}
    return Turn(f"column {fields.column(field)!r}", said)


READERS: dict[str, Callable[[Fields], Iterator[Turn]]] = {
    "messages": lambda fields: fields.turns("messages"),
    "sharegpt": lambda fields: fields.turns("conversations"),
    "alpaca": _alpaca,
    "self-instruct": _self_instruct,
    "prompt-completion": _prompt_completion,
    "question-answer": _question_answer,
}
