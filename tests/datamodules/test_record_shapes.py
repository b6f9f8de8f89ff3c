import csv
import json
from itertools import islice
from pathlib import Path

import pytest

from datamodules.errors import DataError
from datamodules.records.shapes import PREFERENCE_SHAPES, SHAPES, Shape, detect_shape, shape_in_words
from datamodules.sources.formats import format_of, records
from datamodules.sources.units import Unit

DATA = Path(__file__).parents[3] / "shared" / "data"
TURNS = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]


def detect(*records: dict, columns: dict[str, str] | None = None) -> Shape:
    return detect_shape(records, columns, "a.jsonl")


def test_words_say_what_is_read_what_is_not_and_why():
    shape = detect({"id": 7, "instruction": "a", "input": "", "output": "b", "text": "a b"})
    assert shape == Shape("alpaca", ("instruction", "input", "output"), ("id", "text"))
    assert shape_in_words(shape) == (
        "alpaca (columns instruction, input, output; not read: id, text), the first that fits of the shapes "
        f"{', '.join(SHAPES)}"
    )
    assert shape_in_words(detect({"messages": TURNS})).startswith("messages (columns messages), the first")


def test_a_shape_can_be_sent_as_json():
    shape = detect({"question": "a", "answer": "b", "topic": "c"})
    name, columns, unread = json.loads(json.dumps([shape.name, shape.columns, shape.unread]))
    assert Shape(name, tuple(columns), tuple(unread)) == shape


@pytest.mark.parametrize(
    ("record", "name", "columns"),
    [
        ({"prompt": "x", "prompt_id": "1", "messages": TURNS}, "messages", ("messages",)),
        ({"conversations": TURNS, "instruction": "a", "output": "b"}, "sharegpt", ("conversations",)),
        ({"messages": None, "instruction": "a", "output": "b"}, "alpaca", ("instruction", "output")),
        ({"messages": [], "prompt": "a", "completion": "b"}, "prompt-completion", ("prompt", "completion")),
        ({"instruction": "a", "context": "", "response": "b"}, "alpaca", ("instruction", "context", "response")),
        ({"prompt": "a", "response": "b"}, "prompt-completion", ("prompt", "response")),
        (
            {"system_prompt": "s", "question": "a", "response": "b"},
            "question-answer",
            ("system_prompt", "question", "response"),
        ),
        ({"prompt": "a", "question": "b", "answer": "c"}, "question-answer", ("question", "answer")),
        # All are broken, so that what is there decides.
        ({"messages": []}, "messages", ("messages",)),
        ({"instruction": "a", "output": ""}, "alpaca", ("instruction", "output")),
    ],
)
def test_the_first_shape_whose_columns_are_filled_is_taken(record, name, columns):
    shape = detect(record)
    assert (shape.name, shape.columns) == (name, columns)


def test_one_good_record_among_the_first_is_enough():
    shape = detect({"note": "x"}, {"question": "", "answer": None}, {"question": "a", "answer": "b"})
    assert shape == Shape("question-answer", ("question", "answer"), ("note",))


def test_a_mapping_decides_among_the_shapes():
    record = {"instruction": "a", "output": "b", "frage": "c", "antwort": "d"}
    assert detect(record).name == "alpaca"
    shape = detect(record, columns={"question": "frage", "answer": "antwort"})
    assert shape == Shape("question-answer", ("frage", "antwort"), ("instruction", "output"))
    assert detect({"dialog": TURNS}, columns={"messages": "dialog"}).name == "messages"
    # An optional column may be missing from some records.
    assert detect({"question": "a", "answer": "b"}, {"r": "c"}, columns={"reasoning": "r"}).name == "question-answer"


@pytest.mark.parametrize(
    ("record", "columns", "parts"),
    [
        ({"a": 1, "b": 2}, None, ["'a.jsonl' has the columns a, b", "columns={question: frage", *SHAPES]),
        ({"question": "a"}, None, ["has the columns question,", "question-answer (question and answer)"]),
        ({"question": "a"}, {"frage": "question"}, ["'frage' is not a field", "known are: answer, completion"]),
        ({"question": "a"}, {"answer": "antwort"}, ["no column 'antwort' (named for 'answer'); it has: question"]),
        (
            {"a": "x", "b": "y"},
            {"question": "a", "instances": "b"},
            ["no shape has all the fields question, instances"],
        ),
        ({"a": "x", "b": "y"}, {"question": "a"}, ["has the columns a, b"]),
        ({}, None, ["'a.jsonl' holds no record that could be read"]),
    ],
)
def test_what_cannot_be_known_is_told_with_the_way_out(record, columns, parts):
    with pytest.raises(DataError) as error:
        detect(record, columns=columns)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("mgsm/es.tsv", "Los patos de Janet ponen 16 huevos [...], 18"),  # no header: its first record stands for it
    ],
)
def test_public_sets_of_no_known_shape_are_told_by_their_columns(file, named):
    if not (DATA / file).exists():
        pytest.skip(f"{DATA / file} is not on this machine")
    with pytest.raises(DataError) as error:
        detect(*first_records(DATA / file))
    assert f"has the columns {named}" in str(error.value)


def test_a_table_with_a_header_is_read_by_a_mapping(tmp_path):
    file = DATA / "mgsm" / "es.tsv"
    if not file.exists():
        pytest.skip(f"{file} is not on this machine")
    with (tmp_path / "es.csv").open("w", newline="") as out:
        rows = csv.reader(file.open(newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
        csv.writer(out).writerows([["pregunta", "número"], *rows])
    columns = {"question": "pregunta", "answer": "número"}
    shape = detect(*first_records(tmp_path / "es.csv"), columns=columns)
    assert shape == Shape("question-answer", ("pregunta", "número"))


def first_records(path: Path) -> list[dict]:
    name = format_of(str(path))
    return [record for _, record in islice(records(Unit(str(path), name, "")), 16)]


def test_one_odd_record_does_not_decide_the_shape_of_a_set():
    pair = {"instruction": "Why?", "output_1": "a", "output_2": "b", "label": 1}
    odd = {"prompt": "Why?", "output_1": "a", "output_2": "b", "label": 1}
    assert detect_shape([odd, *[pair] * 7], None, "a.jsonl", PREFERENCE_SHAPES).name == "labelled-instruction"
    talk = {"messages": [{"role": "user", "content": "Why?"}], "prompt": "Why?", "completion": "So."}
    empty = talk | {"messages": []}
    assert detect_shape([empty, *[talk] * 3], None, "a.jsonl").name == "messages"
