"""A record of one answer and a label as a conversation that is desirable or not, whatever shape it is written in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from datamodules.errors import DataError
from datamodules.records.fields import Fields, Turn
from datamodules.records.preferences import EMPTY, answered, with_answer
from datamodules.records.prompt_turns import MAIN, Message, prompt_turns
from datamodules.records.shapes import SINGLE_SHAPES, Columns
from datamodules.records.turns import UnfitError, tools_of
from datamodules.sources.bad_records import LeftOut
from datamodules.sources.units import Bad, Record, Unit, is_empty

UNLABELLED = LeftOut("without a label")

DESIRABLE, UNDESIRABLE = "desirable", "undesirable"
# What a label of a single answer usually says. -1 is left out: where it is a label, 0 may say that nobody minds.
LABELS = {
    **dict.fromkeys(("true", "1", "desirable", "good", "yes", "positive", "chosen", "accepted", "like", "liked",
                     "upvote", "up", "thumbs up", "thumbs_up", "thumbs-up", "thumbsup", "👍"), DESIRABLE),
    **dict.fromkeys(("false", "0", "undesirable", "bad", "no", "negative", "rejected", "dislike", "disliked",
                     "downvote", "down", "thumbs down", "thumbs_down", "thumbs-down", "thumbsdown", "👎"), UNDESIRABLE),
}  # fmt: skip
ANSWERS = {"instruction": "output", "prompt": "completion", "question": "answer", "input": "output"}
"""The field of the answer, by that of the prompt; of a conversation it is the last turn."""


@dataclass(frozen=True)
class SingleAnswer:
    """A conversation that ends with an answer.

    Attributes:
        messages: as chat templates take them, the assistant's last.
        is_desirable: what the label says.
        num_prompt: messages before the answer.
        tools: JSON schemas.
    """

    messages: list[Message]
    is_desirable: bool
    num_prompt: int
    tools: list[dict[str, Any]] | None = None

    @property
    def prompt(self) -> list[Message]:
        """What stands before the answer."""
        return self.messages[: self.num_prompt]


def is_single(shape: str) -> bool:
    """Whether records of the shape hold one answer with a label."""
    return shape in SINGLE_SHAPES


def refuse_singles(units: Iterable[Unit], who: str) -> None:
    """Raise `DataError` where one of the units holds single answers, since `who` needs pairs."""
    single = next((unit for unit in units if is_single(unit.shape)), None)
    if single is not None:
        raise DataError(
            f"path: {single.path!r} holds single answers with a label each ({single.shape}), and {who} needs pairs, a"
            " chosen and a rejected answer to one prompt. Single answers train by --model PreferenceOptimization"
            " --model.objective.kind kto"
        )


def single_answer_of(
    record: Record, shape: str, columns: Columns | None, labels: Mapping[str, str] | None = None
) -> SingleAnswer | Bad | LeftOut:
    """The record as an answer with its label, or what is wrong with it, or why it says nothing.

    Args:
        shape: one of `SINGLE_SHAPES`, as `detect_shape` found it.
        columns: the set's own column names by field.
        labels: what values of the label mean that are not among the usual ones: `desirable` or `undesirable`.
    """
    own = {value: meaning for value, meaning in (labels or {}).items() if meaning in (DESIRABLE, UNDESIRABLE)}
    try:
        return _single_answer(Fields(record, columns), shape, LABELS | own)
    except UnfitError as unfit:
        return Bad(str(unfit))
    except RecursionError:
        return Bad("JSON nested too deeply")


def _single_answer(fields: Fields, shape: str, labels: Mapping[str, str]) -> SingleAnswer | LeftOut:
    label = fields.value(column := fields.column("desirable"))
    if is_empty(label):
        return UNLABELLED
    is_desirable = _meaning(label, column, labels) == DESIRABLE
    prompt = list(prompt_turns(fields, shape))
    turns, answer_column = _turns(fields, shape, prompt)
    messages = answered(fields, turns, answer_column)
    if messages is None:
        return EMPTY
    # An answer that repeats the conversation is its last turn.
    num_turns = len(turns) - len(prompt) if turns[: len(prompt)] == prompt else 1
    return SingleAnswer(messages, is_desirable, len(messages) - num_turns, tools_of(fields.optional("tools")))


def _turns(fields: Fields, shape: str, prompt: list[Turn]) -> tuple[list[Turn], str]:
    """All turns, and the column that the answer stands in."""
    main = MAIN[shape]
    if main not in ANSWERS:
        turns = list(fields.turns(main, trainable=False))
        if len(turns) == len(prompt):
            raise UnfitError(f"column {fields.column(main)!r} does not end with the assistant's turn")
        return turns, fields.column(main)
    turns = with_answer(fields, prompt, ANSWERS[main])
    reasoning, said = fields.optional("reasoning"), turns[-1].said
    if reasoning is not None and isinstance(said, dict):
        turns[-1] = turns[-1]._replace(said={"reasoning": reasoning} | said)
    return turns, fields.column(ANSWERS[main])


def _meaning(label: Any, column: str, labels: Mapping[str, str]) -> str:
    said = f"{label:g}" if isinstance(label, float) else str(label).strip()
    meaning = labels.get(said, labels.get(said.lower()))
    if meaning is None:
        raise UnfitError(
            f"column {column!r} says {said[:40]!r}, and it is not known whether that is desirable; say what it means, "
            f"for example data.labels={{{said[:40]!r}: desirable}}"
        )
    return meaning
