"""Joined columns, numbers, multiple choice, lists of turns, and columns of the validation set's own, in all stages."""

import json

import pytest

from datamodules import DataError, InstructionDataModule, PreferenceDataModule, PromptDataModule
from datamodules.encoding.prompts import prompt_of
from datamodules.records.conversations import Conversation, conversation_of
from datamodules.records.preferences import preferences_of
from datamodules.records.shapes import PREFERENCE_SHAPES, PROMPT_SHAPES, RESPONSES, SHAPES, detect_shape
from datamodules.records.turns import UnfitError
from datamodules.serving.pairs import Pairs
from datamodules.sources.units import Bad
from tests.datamodules.chat_tokenizers import chat_tokenizer


def tuned(record, columns=None):
    """(what is asked, what is trained), or what is wrong."""
    found = conversation_of(record, detect_shape([record], columns, "a", SHAPES).name, columns, "train")
    if isinstance(found, Bad):
        return found.reason
    assert isinstance(found, Conversation)
    return [message["content"] for message in found.messages[:-1]], found.messages[-1]["content"]


def asked(record, columns=None):
    return prompt_of(record, detect_shape([record], columns, "a", PROMPT_SHAPES).name, columns).said


def compared(record, columns=None):
    """(what is asked, the better answer, the worse one) of each pair, or what is wrong."""
    found = preferences_of(record, detect_shape([record], columns, "a", PREFERENCE_SHAPES).name, columns)
    if isinstance(found, Bad):
        return found.reason
    contents = [[*(m["content"] for m in one.chosen), one.rejected[-1]["content"]] for one in found]
    return [tuple(said) for said in contents]


SVAMP = {"Body": "Tim has 3 figs.", "Question": "How many?", "Answer": 3, "note": "x"}


@pytest.mark.parametrize(
    ("columns", "record", "said"),
    [
        ({"prompt": ["Body", "Question"], "answer": "Answer"}, SVAMP, "Tim has 3 figs.\nHow many?"),
        ({"question": ["Body", "Question"], "answer": "Answer"}, SVAMP, "Tim has 3 figs.\nHow many?"),
        ({"question": ["Question", "Body"], "answer": "Answer"}, SVAMP, "How many?\nTim has 3 figs."),
        ({"instruction": ["Body", "Question"], "output": "Answer"}, SVAMP, "Tim has 3 figs.\nHow many?"),
        ({"prompt": ["Body", "Question"], "completion": "Answer"}, SVAMP | {"Body": None}, "How many?"),
        ({"prompt": ["Answer", "Question"], "completion": "note"}, SVAMP, "3\nHow many?"),
        # Beside a list of columns nothing is added but what is mapped too.
        ({"prompt": ["Question"], "completion": "note"}, SVAMP | {"context": "y"}, "How many?"),
        ({"prompt": ["Question"], "context": "c", "completion": "note"}, SVAMP | {"c": "y"}, "How many?\ny"),
    ],
)
def test_several_columns_are_one_text(columns, record, said):
    assert tuned(record, columns) == ([said], str(record["Answer"]) if "note" not in columns.values() else "x")
    assert asked(record, columns) == said
    assert asked(record, {field: names for field, names in columns.items() if field not in RESPONSES}) == said
    pair = record | {"chosen": "a", "rejected": "b"}
    only = {field: names for field, names in columns.items() if field not in RESPONSES}
    assert compared(pair, only) == [(said, "a", "b")]


@pytest.mark.parametrize(
    ("value", "text"), [(4, "4"), (-2.5, "-2.5"), (0, "0"), (145.0, "145.0"), (10**30, str(10**30))]
)
def test_numbers_are_answers_as_they_are_written(value, text):
    assert tuned({"question": "q", "answer": value}) == (["q"], text)
    assert tuned({"instruction": "q", "input": value, "output": value}) == ([f"q\n{text}"], text)
    assert tuned({"prompt": "q", "completion": value}) == (["q"], text)
    assert tuned({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": value}]}) == (
        ["q"],
        text,
    )
    assert tuned({"instruction": "q", "history": [["a", value]], "output": "o"}) == (["a", text, "q"], "o")
    assert compared({"question": "q", "chosen": value, "rejected": "b"}) == [("q", text, "b")]
    assert compared({"prompt": "q", "output_1": "b", "output_2": value, "label": 2}) == [("q", text, "b")]


@pytest.mark.parametrize("value", [True, float("nan"), float("inf"), [4]])
def test_what_is_no_answer_stays_bad(value):
    assert "column 'answer' holds" in tuned({"question": "q", "answer": value})
    assert "chosen" in compared({"question": "q", "chosen": value, "rejected": "b"})


LINES = "Which?\nA. cat\nB. dog\nC. cow"
CHOICES = {
    "list and letter": {"question": "Which?", "options": ["cat", "dog", "cow"], "answer": "B"},
    "list and place": {"question": "Which?", "choices": ["cat", "dog", "cow"], "answer": 1, "subject": "x"},
    "list and place as text": {"question": "Which?", "choices": ["cat", "dog", "cow"], "label": "1"},
    "labels and texts": {
        "question": "Which?", "choices": {"text": ["cat", "dog", "cow"], "label": ["A", "B", "C"]}, "answerKey": "B",
    },
    "letters for keys": {"question": "Which?", "options": {"A": "cat", "B": "dog", "C": "cow"}, "answer_idx": "B"},
    "null for what another record has": {
        "question": "Which?", "options": {"A": "cat", "B": "dog", "C": "cow", "D": None}, "answer": "B",
    },
    "objects": {
        "question": "Which?", "answer": "b",
        "choices": [{"label": "A", "text": "cat"}, {"label": "B", "text": "dog"}, {"label": "C", "text": "cow"}],
    },
    "JSON": {"question": "Which?", "choices": '["cat", "dog", "cow"]', "answer": "(B)"},
    "columns by letters": {"question": "Which?", "A": "cat", "B": "dog", "C": "cow", "answer": "B"},
    "columns by names": {"question": "Which?", "option_a": "cat", "option_b": "dog", "option_c": "cow", "answer": "B."},
    "columns by numbers": {"question": "Which?", "choice1": "cat", "choice2": "dog", "choice3": "cow", "label": 1},
    "question_stem": {"question_stem": "Which?", "choices": ["cat", "dog", "cow"], "answerKey": "B"},
    "prompt": {"prompt": "Which?", "choices": ["cat", "dog", "cow"], "answer": "B"},
    "instruction": {"instruction": "Which?", "options": ["cat", "dog", "cow"], "answer": "B"},
    "listed in the question": {"question": LINES, "options": ["cat", "dog", "cow"], "answer": "B"},
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_multiple_choice_asks_with_its_options(name):
    record = CHOICES[name]
    prompt, answer = tuned(record)
    assert prompt == [LINES] and answer.strip("().").upper() == "B"
    assert asked(record) == LINES
    keys = {"answer", "answerKey", "answer_idx", "label"}
    assert asked({key: value for key, value in record.items() if key not in keys}) == LINES
    assert compared(record) == [(LINES, "B", "A"), (LINES, "B", "C")]


def test_multiple_choice_in_other_forms():
    by_text = {"question": "Which?", "options": ["cat", "dog"], "answer": "Dog"}
    assert tuned(by_text) == (["Which?\nA. cat\nB. dog"], "Dog")
    assert compared(by_text) == [("Which?\nA. cat\nB. dog", "dog", "cat")]
    marked = {"question": "2x = 4?", "options": ["A)1", "B)2"], "rationale": "...", "correct": "B"}
    assert tuned(marked) == (["2x = 4?\nA)1\nB)2"], "B")
    passage = {"context": "Dogs bark.", "question": "Which barks?", "options": ["cat", "dog"], "answer": "B. dog"}
    assert tuned(passage) == (["Which barks?\nDogs bark.\nA. cat\nB. dog"], "B. dog")
    assert compared(passage)[0][1:] == ("B", "A")
    numbered = {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}
    assert tuned(numbered) == (["q\n1. x\n2. y"], "2")
    columns = {"question": "ctx", "options": "endings", "answer": "gold"}
    assert tuned({"ctx": "He", "endings": ["ran", "sat"], "gold": "1"}, columns)[0] == ["He\nA. ran\nB. sat"]
    med = {"question": "q", "opa": "x", "opb": "y", "opc": "z", "opd": "w", "cop": 3, "exp": "..."}
    assert tuned(med, {"answer": "cop"}) == (["q\nA. x\nB. y\nC. z\nD. w"], "D")
    mapped = {"options": ["one", "two"], "correct": "gold"}
    assert tuned({"question": "q", "one": "x", "two": "y", "gold": "A"}, mapped) == (["q\nA. x\nB. y"], "A")
    # An answer of its own behind options.
    reply = {"prompt": "q", "options": ["x", "y"], "completion": "It is y, since ..."}
    assert tuned(reply) == (["q\nA. x\nB. y"], "It is y, since ...")
    assert compared({"prompt": "q", "options": ["x", "y"], "chosen": "y", "rejected": "x"}) == [
        ("q\nA. x\nB. y", "y", "x")
    ]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("E", "says 'E', which is none of the options A, B, C"),
        (3, "says '3', which is none of the options A, B, C (places count from 0)"),
        (-1, None),
        (True, "holds true or false"),
        (["B"], "holds a list"),
    ],
)
def test_an_answer_that_is_no_option_is_bad(answer, reason):
    record = {"question": "Which?", "options": ["cat", "dog", "cow"], "answer": answer}
    assert (reason or "none of the options") in compared(record)
    assert reason is None or reason in tuned(record)


def test_a_place_that_could_be_an_option_is_refused():
    record = {"question": "1 + 1?", "options": [1, 2, 3], "answer": 2}
    assert "says '2', which could be the option or its place" in tuned(record)
    assert "says '2', which could be the option or its place" in compared(record)
    assert tuned(record | {"answer": "2"}) == (["1 + 1?\nA. 1\nB. 2\nC. 3"], "2")
    assert tuned(record | {"options": [4, 5], "answer": 5})[1] == "B"


@pytest.mark.parametrize(
    "other", [{"options": {"beams": 4}}, {"choices": ["x"]}, {"a": 3, "b": 4}, {"options": "none"}]
)
def test_columns_that_hold_no_options_are_not_read_as_such(other):
    assert tuned({"question": "q", "answer": "a"} | other) == (["q"], "a")
    assert asked({"prompt": "q", "answer": "a"} | other) == "q"


TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]


@pytest.mark.parametrize("name", ["turns", "conversation", "dialogue", "dialog"])
def test_lists_of_turns(name):
    record = {name: [*TALK, {"role": "assistant", "content": "d"}], "id": 3}
    assert tuned(record) == (["a", "b", "c"], "d")
    assert asked(record) == asked({name: TALK}) == TALK
    by_role = {name: [{"user": "a", "assistant": "b"}, {"user": "c", "assistant": "d"}]}
    assert tuned(by_role) == (["a", "b", "c"], "d") and asked(by_role) == TALK
    assert compared({name: TALK, "chosen": "d", "rejected": "e"}) == [("a", "b", "c", "d", "e")]
    # The names mean other things too.
    assert tuned({"prompt": "q", "completion": "a", name: 2}) == (["q"], "a")


def test_texts_that_a_user_says_one_after_the_other():
    record = {"question_id": 81, "turns": ["Write a story.", "Now in verse."]}
    assert asked(record) == [{"role": "user", "content": "Write a story."}]
    read = prompt_of(record, "messages", None).read
    assert read == ["turns (the first of 2 texts)"]
    assert "text where an object is expected" in tuned(record)
    assert "text where an object is expected" in compared(record | {"chosen": "a", "rejected": "b"})
    assert compared({"turns": ["q"], "chosen": "a", "rejected": "b"}) == [("q", "a", "b")]


def test_what_asks_in_input_alone():
    assert tuned({"input": "q", "output": "a"}) == tuned({"input": "q", "response": "a"}) == (["q"], "a")
    assert asked({"input": "q", "answer": 3}) == asked({"input": "q"}) == "q"
    assert compared({"input": "q", "chosen": "a", "rejected": "b"}) == [("q", "a", "b")]
    with pytest.raises(UnfitError, match=r"no prompt: column .* or input is missing"):
        prompt_of({"text": "q"}, "input", None)


@pytest.fixture
def make(tmp_path):
    chat_tokenizer("smollm2").save_pretrained(tmp_path / "tokenizer")

    def write(name, records):
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(tmp_path / name)

    def build(kind, train, val=None, **settings):
        settings |= {"tokenizer": str(tmp_path / "tokenizer"), "cache_dir": str(tmp_path / "cache")}
        settings |= {"val_path": write("val.jsonl", val)} if val else {"val_share": 0.0}
        data = kind(path=write("data.jsonl", train), **settings)
        data.prepare_data()
        data.setup("fit")
        return data

    return build


OWN = {
    InstructionDataModule: ({"frage": "a?", "antwort": "b"}, {"question": "c?", "answer": "d"}),
    PromptDataModule: ({"frage": "a?", "antwort": "b"}, {"question": "c?", "answer": "d"}),
    PreferenceDataModule: (
        {"frage": "a?", "gut": "b", "schlecht": "c"}, {"question": "c?", "chosen": "d", "rejected": "e"},
    ),
}  # fmt: skip
GERMAN = {"frage": "question", "antwort": "answer", "gut": "chosen", "schlecht": "rejected"}


@pytest.mark.parametrize("kind", OWN)
def test_what_validates_may_have_columns_of_its_own(make, kind):
    german, english = OWN[kind]
    columns = {GERMAN[name]: name for name in german if kind is not PromptDataModule or name == "frage"}

    def validates(val, **settings):
        data = make(kind, [german], [val], columns=columns, **settings)
        if kind is PreferenceDataModule:
            return data.tokenizer.decode(Pairs(data._val)[0].prompt)
        return data.tokenizer.decode(data.example_prompts(1)[0])

    assert "c?" in validates(english)
    assert "c?" in validates({name: english[GERMAN[name]] for name in german})
    third = {f"{name}_3": value for name, value in english.items()}
    own = {name: f"{name}_3" for name in columns}
    assert "c?" in validates(third, val_columns=own)
    with pytest.raises(DataError, match=r"val.jsonl.* (has the columns|make none|no prompt)"):
        validates(third)
    with pytest.raises(DataError, match="val_columns: they are those of val_path, which is not given"):
        make(kind, [german], columns=columns, val_columns=own)


def test_what_is_scored_may_have_columns_of_its_own(make, tmp_path):
    (tmp_path / "talks.jsonl").write_text(json.dumps({"prompt": "a?", "completion": "b"}) + "\n")
    columns = {"prompt": "frage", "chosen": "gut"}
    record = {"frage": "a?", "gut": "b", "rejected": "c"}
    data = make(PreferenceDataModule, [record], columns=columns, predict_path=str(tmp_path / "talks.jsonl"))
    (batch,) = data.predict_dataloader()
    assert batch["records"] == [{"prompt": "a?", "completion": "b"}]


@pytest.mark.parametrize("name", ["reward", "normalized_reward", "error"])
def test_a_column_that_scoring_adds_is_never_overwritten(name, make, tmp_path):
    talks = [{"prompt": f"{n}?", "completion": "b"} for n in range(40)]
    record = {"prompt": "a?", "chosen": "b", "rejected": "c"}
    for row in (2, 40):  # what lies deep in the file is found when it is read, with records that are skipped too
        told = [talk | {name: 0.5} if number == row else talk for number, talk in enumerate(talks, 1)]
        (tmp_path / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in told))
        data = make(PreferenceDataModule, [record], on_bad_record="skip")
        data.predict_path = str(tmp_path / "talks.jsonl")
        with pytest.raises(DataError, match=rf"^predict_path: .*talks\.jsonl:{row}: the column '{name}' is one that"):
            data.check() if row == 2 else list(data.predict_dataloader())


def test_multiple_choice_through_the_modules(make):
    records = [CHOICES["list and letter"] | {"question": f"Which {i}?"} for i in range(3)]
    tuned = make(InstructionDataModule, records)
    assert "A. cat\nB. dog" in tuned.tokenizer.decode(tuned.example_prompts(1)[0])
    prompts = make(PromptDataModule, records)
    assert prompts.example_prompts(1)[0] in [tuned.make_prompts(tuned._train)[i].tolist() for i in range(3)]
    assert prompts.preview(1)[0].endswith("from columns question, options")
    pairs = make(PreferenceDataModule, records)
    assert len(Pairs(pairs._train)) == 6 and len(list(pairs.records("train"))) == 6
