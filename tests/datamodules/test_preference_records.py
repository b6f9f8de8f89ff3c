"""Records of preferences in every shape they come in, as real sets write them."""

import gzip
import json
import math
from pathlib import Path

import pytest

from datamodules.errors import DataError
from datamodules.records.preferences import Preference, preference_of
from datamodules.records.shapes import PREFERENCE_SHAPES, detect_shape
from datamodules.sources.bad_records import LeftOut
from datamodules.sources.units import Bad

SHARED = Path(__file__).parents[3] / "shared" / "data"


def convert(record, columns=None, labels=None):
    shape = detect_shape([record], columns, "a.jsonl", PREFERENCE_SHAPES).name
    return preference_of(record, shape, columns, labels)


def talk(*said):
    roles = ["user", "assistant"] * len(said)
    return [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]


def both(preference):
    assert isinstance(preference, Preference), preference
    return preference.chosen, preference.rejected


HUMAN = "\n\nHuman: ¿Qué es?\n\nAssistant:"
EXPECTED = talk("¿Qué es?", "Un gato."), talk("¿Qué es?", "No sé.")


@pytest.mark.parametrize(
    "record",
    [
        {"chosen": f"{HUMAN} Un gato.", "rejected": f"{HUMAN} No sé."},
        {"chosen": EXPECTED[0], "rejected": EXPECTED[1]},
        {"chosen": EXPECTED[0], "rejected": EXPECTED[1], "prompt": "¿Qué es?"},
        {"prompt": "¿Qué es?", "chosen": "Un gato.", "rejected": "No sé."},
        {"prompt": "\n\nHuman: ¿Qué es?\n\nAssistant:", "chosen": "Un gato.", "rejected": "No sé."},
        {"prompt": EXPECTED[0][:1], "chosen": EXPECTED[0][1:], "rejected": EXPECTED[1][1:]},
        {"prompt": "¿Qué es?", "messages": EXPECTED[0], "chosen": EXPECTED[0], "rejected": EXPECTED[1]},
        {"messages": EXPECTED[0][:1], "chosen": EXPECTED[0][1], "rejected": EXPECTED[1][1]},
        {
            "conversations": [{"from": "human", "value": "¿Qué es?"}],
            "chosen": {"from": "gpt", "value": "Un gato."}, "rejected": {"from": "gpt", "value": "No sé."},
        },
        {"question": "¿Qué es?", "response_j": "Un gato.", "response_k": "No sé.", "qid": 3},
        {"question": "¿Qué es?", "chosen": "Un gato.", "rejected": "No sé."},
        {"instruction": "¿Qué es?", "input": "", "output_1": "Un gato.", "output_2": "No sé.", "preference": 1},
        {"prompt": "¿Qué es?", "output_1": "No sé.", "output_2": "Un gato.", "label": "output_2"},
        {"prompt": "¿Qué es?", "response_a": "No sé.", "response_b": "Un gato.", "winner": "model_b"},
    ],
)  # fmt: skip
def test_one_preference_in_every_shape(record):
    assert both(convert(record)) == EXPECTED


PLAY = "\n\nHuman: Are you alive?\n\nAssistant: I am a robot.\n\nHuman: Cool!\n\nAssistant: Thank you."
DIALOGUES = [PLAY, "Human: Hello.\n\nAssistant: Hi there.", "Assistant: sí.", "Human: Write a short play."]


@pytest.mark.parametrize("dialogue", DIALOGUES)
@pytest.mark.parametrize("shape", ["prompt", "messages", "conversations", "question", "labelled", "transcript"])
def test_an_answer_that_is_a_dialogue_keeps_its_prompt(dialogue, shape):
    asked = [{"role": "user", "content": "Write a short play."}]
    record = {
        "prompt": {"prompt": asked[0]["content"], "chosen": dialogue, "rejected": "No."},
        "messages": {"messages": asked, "chosen": dialogue, "rejected": "No."},
        "conversations": {"conversations": asked, "chosen": dialogue, "rejected": {"from": "gpt", "value": "No."}},
        "question": {"question": asked[0]["content"], "response_j": dialogue, "response_k": "No."},
        "labelled": {"instruction": asked[0]["content"], "output_1": "No.", "output_2": dialogue, "label": 2},
        "transcript": {"prompt": "\n\nHuman: Write a short play.\n\nAssistant:", "chosen": dialogue, "rejected": "No."},
    }[shape]
    chosen, rejected = both(convert(record))
    assert chosen == [*asked, {"role": "assistant", "content": dialogue}]
    assert rejected == [*asked, {"role": "assistant", "content": "No."}]


def test_a_conversation_behind_a_prompt_has_to_begin_with_it():
    whole = "Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    for prompt in ("a", "\n\nHuman: a\n\nAssistant:", "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"):
        found = both(convert({"prompt": prompt, "chosen": whole + "d", "rejected": whole + "e"}))
        assert found == (talk("a", "b", "c", "d"), talk("a", "b", "c", "e"))
    system = {"role": "system", "content": "s"}
    record = {"prompt": [system, *talk("a")], "chosen": talk("a", "b"), "rejected": talk("a", "c")}
    assert both(convert(record)) == ([system, *talk("a", "b")], [system, *talk("a", "c")])
    record = {"messages": talk("a", "b"), "chosen": talk("a", "b"), "rejected": talk("a", "c")}
    assert both(convert(record)) == (talk("a", "b"), talk("a", "c"))
    for prompt in ("You are a pirate.", [system | {"content": "t"}, *talk("a")]):
        record = {"prompt": prompt, "chosen": [system, *talk("a", "b")], "rejected": talk("a", "c")}
        assert "does not begin with the prompt" in convert(record).reason


def test_ties_margins_and_scores():
    tie = convert({"prompt": "a", "output_1": "b", "output_2": "c", "label": "tie", "score_1": 3, "score_2": "3.5"})
    assert tie.is_tie and tie.scores == (3.0, 3.5)
    scored = convert(
        {"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 8.5, "score_rejected": 2, "margin": 2}
    )
    assert (scored.margin, scored.scores, scored.is_tie) == (2.0, (8.5, 2.0), False)
    second = convert({"prompt": "a", "output_1": "b", "output_2": "c", "label": 2, "score_1": 1.0, "score_2": 5.0})
    assert second.scores == (5.0, 1.0) and second.chosen[-1]["content"] == "c"
    assert all(map(math.isnan, convert({"prompt": "a", "chosen": "b", "rejected": "c"}).scores))


@pytest.mark.parametrize(("label", "chosen"), [(0, "b"), (1, "c"), (0.5, None), ("neither", None)])
def test_labels_of_ones_own(label, chosen):
    labels = {"0": "first", "1": "second", "neither": "tie"}
    found = convert({"prompt": "a", "output_1": "b", "output_2": "c", "label": label}, labels=labels)
    assert found.is_tie == (chosen is None) and (chosen is None or found.chosen[-1]["content"] == chosen)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": " \n"}, "empty"),
        ({"prompt": "a", "chosen": None, "rejected": "c"}, "empty"),
        ({"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: c"}, "empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same"),
        ({"chosen": talk("a", "b"), "rejected": talk("a", "b")}, "the same"),
    ],
)
def test_what_says_nothing_is_left_out(record, reason):
    filled = {"prompt": "x", "chosen": "y", "rejected": "z"} if "prompt" in record else {"chosen": "y", "rejected": "z"}
    shape = detect_shape([filled], None, "a.jsonl", PREFERENCE_SHAPES).name
    found = preference_of(record, shape, None)
    assert isinstance(found, LeftOut) and reason in found.reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "a", "output_1": "b", "output_2": "c", "label": 0}, "label' says '0', which could mean"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "wide"}, "margin' holds 'wide', not a number"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")}, "not a finite number"),
        ({"prompt": "a", "chosen": "b", "rejected": True}, "rejected' holds true or false"),
        ({"chosen": "b", "rejected": "c"}, "has no prompt"),
        ({"chosen": talk("a", "b", "c"), "rejected": talk("a", "b")}, "does not end with the assistant"),
        ({"prompt": "a", "chosen": {"role": "wizard", "content": "b"}, "rejected": "c"}, "unknown role 'wizard'"),
        ({"prompt": "a", "chosen": "b\0", "rejected": "c"}, "NUL"),
    ],
)
def test_what_is_wrong_is_said(record, reason):
    found = convert(record)
    assert isinstance(found, Bad) and reason in found.reason, found


def test_columns_of_other_names():
    record = {"frage": "a", "gut": "b", "schlecht": "c"}
    columns = {"question": "frage", "response_j": "gut", "response_k": "schlecht"}
    assert both(convert(record, columns)) == (talk("a", "b"), talk("a", "c"))
    with pytest.raises(DataError, match="frage, gut, schlecht, which make none of the known shapes"):
        convert(record)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data sets are not here")
def test_real_files():
    with gzip.open(SHARED / "hh_rlhf_harmless" / "test.jsonl.gz", "rt") as file:
        found = [convert(json.loads(line)) for line in file]
    assert sum(isinstance(one, LeftOut) for one in found) == 4
    preferences = [one for one in found if isinstance(one, Preference)]
    assert len(preferences) == len(found) - 4 == 2308
    assert all(one.chosen[0]["role"] == "user" and one.chosen[-1]["role"] == "assistant" for one in preferences)
    pairs = json.loads((SHARED / "llamafactory" / "dpo_en_demo.json").read_text())
    assert all(isinstance(convert(record), Preference) for record in pairs)
