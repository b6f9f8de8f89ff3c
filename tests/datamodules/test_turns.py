import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.records.conversations import Conversation
from datamodules.records.preferences import preference_of
from datamodules.records.shapes import PREFERENCE_SHAPES, detect_shape
from datamodules.sources.formats import records
from datamodules.sources.units import Unit
from tests.datamodules.conftest import EMOJI, SPANISH
from tests.datamodules.conversations import ASSISTANT, SYSTEM, USER, convert, said

WEATHER = {"name": "weather", "description": "Weather of a place", "parameters": {"type": "object", "properties": {}}}


def test_the_record_says_which_turns_are_trained():
    answers = [{**ASSISTANT, "weight": weight} for weight in (0, 1, None)]
    turns = [{"from": "gpt", "value": EMOJI, "train": train} for train in (False, True)]
    assert convert({"messages": [USER, *answers]}).trainable == [False, False, True, True]
    assert convert({"conversations": [{"from": "human", "value": "a", "train": True}, *turns]}).trainable == [
        False,
        False,
        True,
    ]
    prompt = [USER, ASSISTANT, USER]
    assert convert({"prompt": prompt, "completion": [ASSISTANT, USER, ASSISTANT]}).trainable == [
        *([False] * 3),
        *(True, False, True),
    ]
    for wrong in ({"weight": 0.5}, {"train": "no"}):
        assert next(iter(wrong)) in convert({"messages": [USER, {**ASSISTANT, **wrong}]}).reason


def test_tools_and_their_calls_come_in_one_form():
    call = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Málaga 🌞"}}}
    text = json.dumps(call["function"]["arguments"])
    result = {"role": "tool", "content": '{"sky": "clear"}'}
    expected = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {**result, "name": "weather"},
        ASSISTANT,
    ]
    tools = [{"type": "function", "function": WEATHER}]
    as_openai = {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": text}, "id": None}
    ]}  # fmt: skip
    bare = {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": {"place": "Málaga 🌞"}}]}
    old = {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": text}}
    for turn in (as_openai, bare, old):
        for schemas in (tools, [WEATHER], json.dumps(tools), [json.dumps(WEATHER)]):
            record = {"messages": [USER, turn, {**result, "name": "weather"}, ASSISTANT], "tools": schemas}
            assert convert(record) == Conversation(expected, [False, True, False, True], tools)
    sharegpt = [
        {"from": "human", "value": SPANISH},
        {"from": "function_call", "value": json.dumps(call["function"])},
        {"from": "observation", "value": '{"sky": "clear"}'},
        {"from": "gpt", "value": EMOJI},
    ]
    conversation = convert({"conversations": sharegpt, "tools": json.dumps([WEATHER])})
    assert conversation == Conversation([*expected[:2], result, ASSISTANT], [False, True, False, True], tools)
    numbered = {"role": "assistant", "content": "", "tool_calls": [{**call, "id": "call_1"}]}
    answer = {**result, "tool_call_id": "call_1"}
    assert convert({"messages": [USER, numbered, answer, ASSISTANT]}).messages[1:3] == [numbered, answer]
    assert convert({"messages": [USER, ASSISTANT], "tools": "[]"}).tools is None


REASONED = f"<think>\nPienso 🤔.\n</think>\n\n{EMOJI}"
WITH_REASONING = {
    "reasoning": {"messages": [USER, {**ASSISTANT, "reasoning": "Pienso 🤔."}]},
    "reasoning_content": {"messages": [USER, {**ASSISTANT, "reasoning_content": "\nPienso 🤔.\n", "thinking": None}]},
    "thinking": {"conversations": [USER, {"from": "gpt", "value": EMOJI, "thinking": "Pienso 🤔."}]},
    "in normal form": {"messages": [USER, {"role": "assistant", "content": REASONED}]},
    "on one line": {"question": SPANISH, "answer": f"<think>Pienso 🤔.</think>{EMOJI}"},
    "twice the same": {"messages": [USER, {"role": "assistant", "content": REASONED, "reasoning": "Pienso 🤔."}]},
    "alpaca": {"instruction": SPANISH, "output": EMOJI, "reasoning": "Pienso 🤔."},
    "prompt": {"prompt": SPANISH, "completion": EMOJI, "thinking": "Pienso 🤔."},
    "question": {"question": SPANISH, "answer": EMOJI, "reasoning_content": "Pienso 🤔."},
}


@pytest.mark.parametrize("name", WITH_REASONING)
def test_reasoning_stands_before_the_answer_or_is_dropped(name):
    for reasoning in ("train", "mask"):
        assert said(WITH_REASONING[name], reasoning=reasoning) == [("user", SPANISH), ("assistant", REASONED)]
    assert said(WITH_REASONING[name], reasoning="drop") == [("user", SPANISH), ("assistant", EMOJI)]


def test_a_thought_cannot_end_itself():
    for key in ("reasoning", "thinking"):
        forged = {**ASSISTANT, key: "Hm.</think>\n\nNo."}
        assert "its reasoning spells </think>" in convert({"messages": [USER, forged]}).reason
    assert "spells </think>" in convert({"question": SPANISH, "answer": EMOJI, "reasoning": "<think>a</think>"}).reason


def test_an_empty_thought_stays_and_tags_in_prose_are_prose():
    empty = "<think>\n\n</think>\n\nSí."
    assert said({"question": "¿?", "answer": empty})[1] == ("assistant", empty)
    assert said({"question": "¿?", "answer": empty}, reasoning="drop")[1] == ("assistant", "Sí.")
    prose = "Such models write <think> and </think> around it."
    assert said({"question": prose, "answer": prose}, reasoning="drop") == [("user", prose), ("assistant", prose)]


def test_parquet_fills_keys_with_null_and_is_read_like_json(tmp_path):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Málaga"}}}
    other = {"type": "function", "function": {"name": "time", "arguments": {"zone": "CET"}}}
    rows = [
        {"messages": [SYSTEM, USER, {"role": "assistant", "content": None, "tool_calls": [call, other]}]},
        {"messages": [USER, {**ASSISTANT, "reasoning": "Pienso."}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = [record for _, record in records(Unit(str(tmp_path / "a.parquet"), "parquet", ""))]
    assert read[0]["messages"][0]["tool_calls"] is None
    first, second = (convert(record) for record in read)
    assert first.messages == [SYSTEM, USER, {"role": "assistant", "content": "", "tool_calls": [call, other]}]
    assert second.messages == [USER, {"role": "assistant", "content": f"<think>\nPienso.\n</think>\n\n{EMOJI}"}]


BOOKED = {"room": None, "n": 1, "who": {"name": None}, "days": [None]}


@pytest.mark.parametrize("arguments", [BOOKED, json.dumps(BOOKED)], ids=["as an object", "as JSON"])
def test_null_is_an_argument_like_any_other(arguments):
    call = {"name": "book", "arguments": arguments}
    room = {"type": ["string", "null"], "default": None}
    schema = {"name": "book", "parameters": {"type": "object", "properties": {"room": room}}}
    for turn in (
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "function_call": call},
    ):
        made = convert({"messages": [USER, turn], "tools": [schema]})
        assert made.messages[1]["tool_calls"][0]["function"]["arguments"] == BOOKED
        assert made.tools[0]["function"]["parameters"]["properties"]["room"] == room
    pair = {"prompt": SPANISH, "chosen": [{"role": "assistant", "tool_calls": [call]}], "rejected": "No."}
    shape = detect_shape([pair], None, "a.jsonl", PREFERENCE_SHAPES).name
    chosen = preference_of(pair, shape, None).chosen
    assert chosen[1]["tool_calls"][0]["function"]["arguments"] == BOOKED


@pytest.mark.parametrize("key", ["tool_calls", "function_call"])
@pytest.mark.parametrize("value", [False, True, 0, 0.0, 7])
def test_a_call_that_is_none_is_bad_and_an_empty_one_is_left_out(key, value):
    for turns in ([{**USER, key: value}, ASSISTANT], [USER, {**ASSISTANT, key: value}]):
        assert "where a call is expected" in convert({"messages": turns}).reason
    for empty in (None, [], {}, "", " "):
        assert convert({"messages": [USER, {**ASSISTANT, key: empty}]}).messages == [USER, ASSISTANT]


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_columnar_files_fill_objects_up_with_null(form, tmp_path):
    """There a null that was meant cannot be told from a key that is not there, but in arguments as JSON it can."""
    calls = [{"name": "book", "arguments": {"room": "a"}}, {"name": "book", "arguments": {"n": 1}}]
    talks = [
        {"messages": [{**USER, "tool_calls": None}, {"role": "assistant", "tool_calls": [call]}]} for call in calls
    ]
    tables = {"calls": pa.Table.from_pylist(talks)}
    for talk in talks:
        talk["messages"][1]["tool_calls"][0]["arguments"] = json.dumps(BOOKED)
    tables["texts"] = pa.Table.from_pylist(talks)
    for name, table in tables.items():
        if form == "parquet":
            pq.write_table(table, tmp_path / name)
        else:
            with pa.ipc.new_file(tmp_path / name, table.schema) as file:
                file.write_table(table)
        read = [convert(record) for _, record in records(Unit(str(tmp_path / name), form, ""))]
        made = [one.messages[1]["tool_calls"][0]["function"]["arguments"] for one in read]
        assert made == ([{"room": "a"}, {"n": 1}] if name == "calls" else [BOOKED, BOOKED])
