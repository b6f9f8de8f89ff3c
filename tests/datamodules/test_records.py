import json
from pathlib import Path

import pytest

from datamodules.records.conversations import Conversation, conversation_of, detect_shape
from datamodules.sources.formats import records
from datamodules.sources.units import Bad, Unit
from tests.datamodules.conftest import EMOJI, SPANISH
from tests.datamodules.conversations import ASSISTANT, SYSTEM, USER, convert, said

DATA = Path(__file__).parents[3] / "shared" / "data"


SAME_CONVERSATION = {
    "messages": {"messages": [SYSTEM, USER, ASSISTANT]},
    "system column": {"system": "Sé breve.", "messages": [USER, ASSISTANT]},
    "parts": {
        "messages": [
            SYSTEM,
            {"role": "user", "content": [{"type": "text", "text": SPANISH[:7]}, {"type": "text", "text": SPANISH[7:]}]},
            {"role": "assistant", "content": [{"type": "text", "text": EMOJI}]},
        ]
    },
    "messages as JSON": {"messages": json.dumps([SYSTEM, USER, ASSISTANT])},
    "columns of parquet": {
        "messages": [{**turn, "tool_calls": None, "name": None, "weight": None} for turn in (SYSTEM, USER, ASSISTANT)],
        "tools": None,
    },
    "sharegpt": {
        "conversations": [
            {"from": "system", "value": "Sé breve."},
            {"from": "human", "value": SPANISH},
            {"from": "gpt", "value": EMOJI},
        ]
    },
    "sharegpt's other names": {
        "system": "Sé breve.",
        "conversations": [{"from": "user", "value": SPANISH}, {"from": "chatgpt", "value": EMOJI}],
    },
    "roles in conversations": {"conversations": [SYSTEM, USER, {"role": "Assistant", "content": EMOJI}]},
    "alpaca": {"instruction": SPANISH, "input": "", "output": EMOJI, "system": "Sé breve."},
    "self-instruct": {
        "system": "Sé breve.",
        "instruction": SPANISH,
        "instances": [{"input": "", "output": EMOJI}, {"output": "other"}],
    },
    "alpaca without input": {"instruction": SPANISH, "output": EMOJI, "system": "Sé breve.", "history": None},
    "dolly": {"instruction": SPANISH, "context": None, "response": EMOJI, "system": "Sé breve."},
    "prompt and completion": {"prompt": SPANISH, "completion": EMOJI, "system": "Sé breve."},
    "prompt and completion of messages": {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]},
    "prompt of messages": {"prompt": [SYSTEM, USER], "completion": EMOJI},
    "prompt and response": {"prompt": SPANISH, "response": EMOJI, "system_prompt": "Sé breve."},
    "question and answer": {"question": SPANISH, "answer": EMOJI, "system": "Sé breve."},
    "question and response": {"question": SPANISH, "response": EMOJI, "system_prompt": "Sé breve."},
}


@pytest.mark.parametrize("name", SAME_CONVERSATION)
def test_every_shape_gives_the_same_conversation(name):
    conversation = convert(SAME_CONVERSATION[name])
    assert conversation == Conversation([SYSTEM, USER, ASSISTANT], [False, False, True])


@pytest.mark.parametrize(
    ("columns", "record"),
    [
        ({"question": "frage", "answer": "antwort"}, {"frage": SPANISH, "antwort": EMOJI, "instruction": "x"}),
        ({"messages": "dialog"}, {"dialog": [USER, ASSISTANT]}),
        ({"messages": "dialog"}, {"dialog": [{"from": "human", "value": SPANISH}, {"from": "gpt", "value": EMOJI}]}),
        ({"output": "answer"}, {"instruction": SPANISH, "answer": EMOJI, "output": "another"}),
    ],
)
def test_columns_may_have_other_names(columns, record):
    assert said(record, columns=columns) == [("user", SPANISH), ("assistant", EMOJI)]


def test_alpaca_joins_instruction_and_input_and_puts_its_history_first():
    record = {
        "instruction": "Traduce.",
        "input": SPANISH,
        "output": EMOJI,
        "history": [["¿Hola?", "¡Hola!"], ["¿Y tú?", "Bien 🙂"]],
    }
    expected = [
        *(("user", "¿Hola?"), ("assistant", "¡Hola!"), ("user", "¿Y tú?"), ("assistant", "Bien 🙂")),
        *(("user", f"Traduce.\n{SPANISH}"), ("assistant", EMOJI)),
    ]
    assert said(record) == expected
    assert said({**record, "history": json.dumps(record["history"])}) == expected
    assert convert(record).trainable == [False, True] * 3
    assert said({"instruction": "", "input": SPANISH, "output": EMOJI}) == [("user", SPANISH), ("assistant", EMOJI)]


def test_a_system_turn_of_the_messages_goes_before_the_system_column():
    for role in ("system", "developer"):
        turn = {"role": role, "content": "the turn's"}
        assert said({"system": "the column's", "messages": [turn, USER, ASSISTANT]})[0] == (role, "the turn's")


def answer(content, **keys) -> dict:
    return {"messages": [USER, {"role": "assistant", "content": content, **keys}]}


BAD = {
    "column 'messages' has no turns": {"messages": []},
    "column 'messages' holds null, not a list of turns": {"messages": None},
    "column 'messages' holds an object, not a list of turns": {"messages": {"role": "user", "content": "x"}},
    "column 'messages' holds text that is not JSON": {"messages": "hello"},
    "turn 1 of messages: text where an object is expected": {"messages": ["hello"]},
    "turn 1 of messages: a list where an object is expected": {"messages": [[USER, ASSISTANT]]},
    "turn 2 of messages: it has no content": answer(None),
    "turn 1 of messages: it has no content": {"messages": [{"role": "user"}, ASSISTANT]},
    "turn 1 of messages: it has no role": {"messages": [{"content": "x"}, ASSISTANT]},
    "turn 1 of messages: role holds a number": {"messages": [{"role": 1, "content": "x"}, ASSISTANT]},
    "turn 1 of messages: unknown role 'narrator'": {"messages": [{"role": "narrator", "content": "x"}, ASSISTANT]},
    "turn 2 of messages: the reply is empty": answer(" \n\t"),
    "content holds true or false, not text": answer(True),
    "content holds nan, which is no number": answer(float("nan")),
    "turn 1 of messages: content holds a number, not text": {"messages": [{"role": "user", "content": 7}, ASSISTANT]},
    "content holds an object, not text": answer({"text": "x"}),
    "content holds a list with text in it": answer(["x"]),
    "content holds a list with a list in it": answer([[{"type": "text", "text": "x"}]]),
    "content holds a part of type 'image_url'; only text": answer([{"type": "image_url", "image_url": "x"}]),
    "a part of content holds null, not text": answer([{"type": "text"}]),
    "content holds a NUL character (U+0000), its character 2": answer("a\0b"),
    "content opens <think> and never closes it": answer("<think>and so on"),
    "content closes </think> and never opened it": answer("so it is.</think>\nYes."),
    "it has two different reasonings": answer("<think>a</think>x", reasoning="b"),
    "reasoning holds a list, not text": answer("x", reasoning=["a"]),
    "messages: the reply is empty": answer("<think>a</think>\n"),
    "no turn is the assistant's": {"messages": [USER, USER]},
    "tool_calls holds a call without the name": answer(None, tool_calls=[{"function": {"arguments": "{}"}}]),
    "tool_calls holds a number": answer(None, tool_calls=[3]),
    "arguments of f holds text that is not JSON": answer(None, tool_calls=[{"name": "f", "arguments": "{"}]),
    "arguments of f hold a list, not an object": answer(None, tool_calls=[{"name": "f", "arguments": "[1]"}]),
    "name holds a number": answer("x", name=3),
    "tools holds text that is not JSON": {**answer("x"), "tools": "none"},
    "tools holds a number where a schema is expected": {**answer("x"), "tools": [3]},
    "column 'system' holds a list, not text": {**answer("x"), "system": ["y"]},
    "column 'output' is empty": {"instruction": "x", "input": "", "output": " "},
    "column 'output' holds null, not text": {"instruction": "x", "output": None},
    "column 'output' holds a list, not text": {"instruction": "x", "output": ["y"]},
    "column 'input' holds a list, not text": {"instruction": "x", "input": [3], "output": "y"},
    "column 'instruction' is empty": {"instruction": "", "input": None, "output": "y"},
    "history: its entry 1 is not a pair": {"instruction": "x", "output": "y", "history": [["a", "b", "c"]]},
    "history, pair 1: the reply is empty": {"instruction": "x", "output": "y", "history": [["a", ""]]},
    "column 'question' is empty": {"question": "", "answer": "x"},
    "column 'answer' holds true or false": {"question": "x", "answer": True},
    "column 'answer': content opens <think>": {"question": "x", "answer": "<think>"},
    "column 'prompt' holds an object, not text": {"prompt": USER, "completion": "x"},
    "a reasoning beside a completion": {"prompt": "x", "completion": [ASSISTANT], "reasoning": "y"},
}


@pytest.mark.parametrize("reason", BAD)
def test_what_is_wrong_with_a_bad_record(reason):
    for reasoning in ("train", "drop"):
        bad = convert(BAD[reason], reasoning=reasoning)
        assert isinstance(bad, Bad) and reason in bad.reason


@pytest.mark.parametrize(
    ("record", "columns", "lacking"),
    [
        ({"question": "x", "answer": "y"}, None, "instruction"),
        ({"instruction": "x", "answer": "y"}, None, "output or response"),
        ({"instruction": "x", "output": "y"}, {"output": "antwort"}, "antwort"),
    ],
)
def test_a_record_of_another_shape_names_the_column_that_it_lacks(record, columns, lacking):
    bad = conversation_of(record, "alpaca", columns, "train")
    assert bad == Bad(f"no column {lacking}; it has: {', '.join(record)}")


def test_nothing_that_json_can_hold_raises():
    values = [None, True, 3, 1e400, "", "x", "\ud83d", [], {}, [[]], [None], [{}], {"a": [1]}, "[" * 10_000]
    deep: list = []
    for _ in range(5_000):
        deep = [deep]
    for value in (*values, deep):
        for field, shape in {"messages": "messages", "conversations": "sharegpt", "history": "alpaca"}.items():
            record = {"instruction": "x", "output": "y", field: value}
            assert isinstance(conversation_of(record, shape, None, "train"), Conversation | Bad)
        for key in ("role", "content", "tool_calls", "function_call", "name", "weight", "train", "reasoning"):
            record = {"messages": [USER, {**ASSISTANT, key: value}], "tools": value}
            assert isinstance(conversation_of(record, "messages", None, "mask"), Conversation | Bad)


def test_long_texts_stay_whole_and_lone_surrogates_become_readable():
    long = SPANISH * 1200 + EMOJI
    assert len(long) > 120_000
    assert said({"prompt": long, "completion": long}) == [("user", long), ("assistant", long)]
    call = {"name": "f", "arguments": {"a": ["\ud83d"]}}
    record = {"messages": [{"role": "user", "content": "a\ud83d b"}, {"role": "assistant", "tool_calls": [call]}]}
    conversation = convert(record)
    assert conversation.messages[0]["content"] == "a\ufffd b"
    assert conversation.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": ["\ufffd"]}


@pytest.mark.parametrize(
    ("file", "shape", "count"),
    [
        ("llamafactory/alpaca_en_demo.json", "alpaca", 999),
        ("llamafactory/identity.json", "alpaca", 91),
        ("self_instruct/seed_tasks.jsonl", "self-instruct", 175),
        ("llamafactory/kto_en_demo.json", "messages", 300),
        ("gsm8k/train.jsonl", "question-answer", 7473),
        ("gsm8k/test.jsonl", "question-answer", 1319),
    ],
)
def test_every_record_of_public_sets_is_a_conversation(file, shape, count):
    conversations = read_public(file, shape)
    assert [bad for bad in conversations if isinstance(bad, Bad)] == []
    assert len(conversations) == count
    for conversation in conversations:
        assert any(conversation.trainable) and len(conversation.trainable) == len(conversation.messages)
        assert {message["role"] for message in conversation.messages} == {"user", "assistant"}
        assert not any("<think>" in message["content"] for message in conversation.messages)


def test_preference_records_are_conversations_where_the_assistant_has_spoken():
    conversations = read_public("llamafactory/dpo_en_demo.json", "sharegpt")
    assert len(conversations) == 300
    bad = [conversation for conversation in conversations if isinstance(conversation, Bad)]
    assert {reason for (reason,) in bad} == {"no turn is the assistant's, so that there is nothing to train on"}
    assert 0 < len(bad) < 300


def read_public(file: str, shape: str) -> list[Conversation | Bad]:
    if not (DATA / file).exists():
        pytest.skip(f"{DATA / file} is not on this machine")
    read = [record for _, record in records(Unit(str(DATA / file), file.rpartition(".")[2], ""))]
    assert detect_shape(read[:16], None, file).name == shape
    return [conversation_of(record, shape, None, "train") for record in read]
