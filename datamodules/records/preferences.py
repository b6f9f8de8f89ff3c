"""A record of preference data as two conversations, of which one is preferred, whatever the shape it is written in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datamodules.records.fields import Fields, Turn
from datamodules.records.options import Option, right_option
from datamodules.records.prompt_turns import SYSTEM_ROLES, Message, prompt_turns, read_turn, transcript, with_system
from datamodules.records.shapes import Columns
from datamodules.records.turns import ROLES, UnfitError, is_blank, kind_of, text_of, tools_of
from datamodules.sources.bad_records import LeftOut
from datamodules.sources.units import Bad, Record

EMPTY, IDENTICAL = LeftOut("with an empty answer"), LeftOut("of two answers that are the same")

FIRST, SECOND, TIE = "first", "second", "tie"
# What a label of a pair usually says. 0 is left out: it is the first response to some and a tie to others.
LABELS = {
    "1": FIRST, "2": SECOND, "first": FIRST, "second": SECOND, "a": FIRST, "b": SECOND, "model_a": FIRST,
    "model_b": SECOND, "output_1": FIRST, "output_2": SECOND, "tie": TIE, "draw": TIE, "equal": TIE, "both": TIE,
    "tie (bothbad)": TIE, "0.5": TIE, "1.5": TIE,
}  # fmt: skip


@dataclass(frozen=True)
class Preference:
    """Two conversations that begin alike and end with different responses.

    Attributes:
        chosen, rejected: messages as chat templates take them, the assistant's last.
        tools: JSON schemas.
        is_tie: neither response is better.
        margin: by how much the chosen one is, in the data's own measure; 0 where it does not say.
        scores: of the chosen and of the rejected response; NaN where there are none.
    """

    chosen: list[Message]
    rejected: list[Message]
    tools: list[dict[str, Any]] | None = None
    is_tie: bool = False
    margin: float = 0.0
    scores: tuple[float, float] = (math.nan, math.nan)

    @property
    def prompt(self) -> list[Message]:
        """What stands before the chosen response."""
        return self.chosen[:-1]


def preferences_of(
    record: Record, shape: str, columns: Columns | None, labels: Mapping[str, str] | None = None
) -> list[Preference] | Bad | LeftOut:
    """As `preference_of`; of a multiple-choice question the right option against each of the others."""
    if is_pair(shape):
        found = preference_of(record, shape, columns, labels)
        return [found] if isinstance(found, Preference) else found
    try:
        return _of_choice(Fields(record, columns), shape)
    except UnfitError as unfit:
        return Bad(str(unfit))
    except RecursionError:
        return Bad("JSON nested too deeply")


def preference_of(
    record: Record, shape: str, columns: Columns | None, labels: Mapping[str, str] | None = None
) -> Preference | Bad | LeftOut:
    """The record as a preference, or what is wrong with it, or why it says nothing.

    Args:
        shape: one of `PREFERENCE_SHAPES`, as `detect_shape` found it.
        columns: the set's own column names by field.
        labels: what values of a `label` mean that are not among the usual ones: `first`, `second` or `tie`.
    """
    own = {value: meaning for value, meaning in (labels or {}).items() if meaning in (FIRST, SECOND, TIE)}
    try:
        return _preference(Fields(record, columns), shape, LABELS | own)
    except UnfitError as unfit:
        return Bad(str(unfit))
    except RecursionError:
        return Bad("JSON nested too deeply")


def _preference(fields: Fields, shape: str, labels: Mapping[str, str]) -> Preference | LeftOut:
    names, scores, verdict = ("chosen", "rejected"), ("chosen_score", "rejected_score"), FIRST
    if shape.startswith("labelled"):
        names, scores, verdict = ("output_1", "output_2"), ("score_1", "score_2"), _verdict(fields, labels)
    if verdict == SECOND:
        names, scores = names[::-1], scores[::-1]
    prompt = [] if shape == "whole-pair" else list(prompt_turns(fields, shape))
    chosen, rejected = (_conversation(fields, prompt, name) for name in names)
    if chosen is None or rejected is None:
        return EMPTY
    if chosen == rejected:
        return IDENTICAL
    return Preference(
        chosen,
        rejected,
        tools_of(fields.optional("tools")),
        verdict == TIE,
        _number(fields, "margin", 0.0),
        (_number(fields, scores[0], math.nan), _number(fields, scores[1], math.nan)),
    )


def _of_choice(fields: Fields, shape: str) -> list[Preference]:
    """Responses are options' letters, or their texts where the right one is given by its text."""
    prompt = with_system(fields, [read_turn(turn)[0] for turn in prompt_turns(fields, shape)])
    options, given, column = fields.options(), fields.optional("correct"), fields.column("correct")
    right = right_option(given, options, column)
    if right is None:
        raise UnfitError(f"column {column!r} says {str(given)[:40]!r}, which is none of the options")
    by_text = isinstance(given, str) and given.strip().casefold() == right.text.casefold() != right.label.casefold()

    def answered(option: Option) -> list[Message]:
        return [*prompt, {"role": "assistant", "content": option.text if by_text else option.label}]

    tools = tools_of(fields.optional("tools"))
    return [Preference(answered(right), answered(other), tools) for other in options if other != right]


def _conversation(fields: Fields, prompt: list[Turn], name: str) -> list[Message] | None:
    """The messages with one of the responses; None where the response is empty."""
    return answered(fields, with_answer(fields, prompt, name), fields.column(name))


def answered(fields: Fields, turns: list[Turn], column: str) -> list[Message] | None:
    """The messages of turns that end with a response; None where it is empty.

    Args:
        column: the response's, for messages.

    Raises:
        UnfitError: they do not end with one, or nothing stands before it.
    """
    if is_blank(turns[-1].said):
        return None
    messages = [read_turn(turn)[0] for turn in turns]
    if messages[-1]["role"] != "assistant":
        raise UnfitError(f"column {column!r} does not end with the assistant's turn")
    if len(messages) == 1:
        raise UnfitError(
            f"column {column!r} has no prompt: it is neither a transcript (\\n\\nHuman: ... "
            "\\n\\nAssistant: ...) nor a list of messages, and no column holds one"
        )
    return with_system(fields, messages)


def with_answer(fields: Fields, prompt: list[Turn], name: str) -> list[Turn]:
    """The prompt and the response in a field, which may be a whole conversation that begins with the prompt."""
    column = fields.column(name)
    response = fields.value(column)
    if isinstance(response, int | float):
        response = text_of(response, f"column {column!r}", numbers=True)
    if isinstance(response, str):
        spoken = transcript(text_of(response, f"column {column!r}"), column)
        # Without a prompt of its own the text has to be one; behind a prompt it is one where it repeats the prompt, and
        # else a response that happens to be a dialogue.
        is_whole = spoken and (not prompt or _lines(spoken[-1:])[0][0] == "assistant")
        whole = _whole(prompt, spoken) if is_whole else None
        return whole or [*prompt, Turn(f"column {column!r}", {"role": "assistant", "content": response})]
    if isinstance(response, dict):
        return [*prompt, Turn(f"column {column!r}", response)]
    if response is None:
        return [*prompt, Turn(f"column {column!r}", {"role": "assistant", "content": ""})]
    turns = list(fields.turns(name))
    if is_blank(turns[0].said) or read_turn(turns[0])[0]["role"] == "assistant":
        return [*prompt, *turns]
    # Some sets have a prompt, and behind it responses that are the whole conversation.
    if not (whole := _whole(prompt, turns)):
        raise UnfitError(
            f"column {column!r} is a conversation that does not begin with the prompt beside it; take the prompt's "
            "column out, or let the responses begin with the assistant's turn"
        )
    return whole


def _whole(prompt: list[Turn], turns: list[Turn]) -> list[Turn] | None:
    """The turns, where they are the prompt and what follows it; the prompt's system message stays if they lack it."""
    asked, said = _lines(prompt), _lines(turns)
    system = [line for line in asked if line[0] in SYSTEM_ROLES]
    rest = [line for line in asked if line[0] not in SYSTEM_ROLES]
    while rest and rest[-1][0] == "assistant":  # of a whole conversation beside the responses
        rest.pop()
    if [line for line in said if line[0] not in SYSTEM_ROLES][: len(rest)] != rest:
        return None
    own = [line for line in said if line[0] in SYSTEM_ROLES]
    if own or not system:
        return turns if all(line in own for line in system) else None
    return [*(turn for turn, line in zip(prompt, asked, strict=True) if line in system), *turns]


def _lines(turns: list[Turn]) -> list[tuple[str, str]]:
    """Who says what, in a form that is the same for the same turn however a set writes it down."""
    lines = []
    for turn in turns:
        said = turn.said if isinstance(turn.said, dict) else {}
        role, content = said.get("role", said.get("from")), said.get("content", said.get("value"))
        text = " ".join(content.split()) if isinstance(content, str) else str(content)
        lines.append((ROLES.get(str(role).lower(), str(role)), text))
    return lines


def is_pair(shape: str) -> bool:
    """Whether records of the shape hold two responses."""
    return shape.endswith("-pair") or shape.startswith("labelled")


def first_answer(shape: str) -> str:
    """The field of the response that stands first."""
    return "output_1" if shape.startswith("labelled") else "chosen"


def prompt_of_pair(fields: Fields, shape: str) -> list[Turn]:
    """The turns before a pair's first response, which need not be there; raises `UnfitError` where there are none."""
    prompt = [] if shape == "whole-pair" else list(prompt_turns(fields, shape))
    name = first_answer(shape)
    turns = with_answer(fields, prompt, name)[:-1]
    if not turns:
        raise UnfitError(f"column {fields.column(name)!r} has no prompt, and no column holds one")
    return turns


def _verdict(fields: Fields, labels: Mapping[str, str]) -> str:
    column = fields.column("label")
    value = fields.record[column]
    said = f"{value:g}" if isinstance(value, float) else str(value).strip()
    verdict = labels.get(said, labels.get(said.lower()))
    if verdict is None:
        raise UnfitError(
            f"column {column!r} says {said[:40]!r}, which could mean several things; say which, for example "
            "labels={'0': first, '1': second, '0.5': tie}"
        )
    return verdict


def _number(fields: Fields, name: str, default: float) -> float:
    value = fields.optional(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UnfitError(f"column {fields.column(name)!r} holds {kind_of(value)}, not a number")
    try:
        number = float(value)
    except ValueError as error:
        raise UnfitError(f"column {fields.column(name)!r} holds {str(value)[:40]!r}, not a number") from error
    if not math.isfinite(number):
        raise UnfitError(f"column {fields.column(name)!r} holds {value}, not a finite number")
    return number
