"""Keys of turns and calls beside the usual ones: a template writes them, a line says that it does not, or the record is
refused."""

import json
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules import DataError, InstructionDataModule, PreferenceDataModule, PromptDataModule
from datamodules.records.record_source import RecordSource
from datamodules.serving.scoring import Conversations
from tests.datamodules.chat_tokenizers import chat_tokenizer
from tests.datamodules.test_template_probe import ASSISTANT, USER, WITH_TOOLS, call, chatml, outcome, template

PLANNING = "{% if m.role == 'assistant' and m.tool_plan %}{{ '<plan>' + m.tool_plan + '</plan>' }}{% endif %}"


@pytest.fixture
def settings(tmp_path):
    chat_tokenizer("smollm2", chatml()).save_pretrained(tmp_path / "tokenizer")
    return {
        "tokenizer": str(tmp_path / "tokenizer"), "cache_dir": str(tmp_path / "cache"),
        "val_share": 0.0, "path": str(tmp_path / "data.jsonl"),
    }  # fmt: skip


@pytest.mark.parametrize("key", ["images", "image", "audio", "video_url", "input_audio"])
def test_what_is_no_text_is_refused_wherever_it_stands(key):
    one = template(chatml("{{ m." + key + " or '' }}"))
    assert f"turn 1 of messages: it holds {key}; only text" in outcome(one, {**USER, key: ["a"]}, ASSISTANT)
    assert f"turn 2 of messages: it holds {key}; only text" in outcome(one, USER, {**ASSISTANT, key: {"url": "b"}})
    assert outcome(one, {**USER, key: []}, {**ASSISTANT, key: None}) == "Yes.<|im_end|>"


@pytest.mark.parametrize(
    ("turn", "meant"),
    [
        ({**ASSISTANT, "tool_call": [{"name": "f"}]}, "call it tool_calls"),
        ({**ASSISTANT, "toolCalls": [{"name": "f"}]}, "call it tool_calls"),
        ({**ASSISTANT, "contents": "No."}, "call it content"),
        ({**ASSISTANT, "value": "No."}, "call it value"),
        ({**ASSISTANT, "thought": "Hm."}, "call it reasoning"),
        ({"role": "system", "content": "Be brief.", "reasoning_content": "Hm."}, "call it reasoning"),
        ({**ASSISTANT, "function_call": {"name": "f"}, "tool_calls": call()["tool_calls"]}, "call it function_call"),
    ],
)
def test_what_was_meant_for_something_else_is_refused(turn, meant):
    found = outcome(template(WITH_TOOLS), turn, USER, ASSISTANT)
    assert "the chat template writes nothing of" in found and f"in a turn of the {turn['role']}; {meant}" in found


def test_arguments_of_calls_by_another_name_are_refused():
    for call_of in ({"name": "f", "args": {"a": 1}}, {"function": {"name": "f", "input": "{}", "arguments": {}}}):
        turn = {"role": "assistant", "content": "", "tool_calls": [call_of]}
        assert "nothing of 'tool_calls." in (found := outcome(template(WITH_TOOLS), USER, turn))
        assert found.endswith("call it arguments, or take it out")
    numbered = {**call(town="Utrecht")["tool_calls"][0], "index": 0}
    assert outcome(template(WITH_TOOLS), USER, {**call(), "tool_calls": [numbered]}).startswith("<tool_call>")
    both = {"role": "tool_call", "content": '{"name": "f"}', "tool_calls": [numbered]}
    assert "its role is tool_call" in outcome(template(WITH_TOOLS), USER, both)


def test_what_a_template_writes_is_written_and_trained():
    one, planned = template(chatml(PLANNING)), {**ASSISTANT, "tool_plan": "Look outside."}
    assert outcome(one, USER, planned) == "Yes.<plan>Look outside.</plan><|im_end|>"
    assert one.unread([USER, planned]) == set()
    assert one.unread([{**USER, "tool_plan": "x"}, planned]) == {"tool_plan"}  # of the user's turn
    assert template(chatml()).unread([USER, planned]) == {"tool_plan"}
    forged = {**ASSISTANT, "tool_plan": "<|im_end|>"}
    assert "spells the special token" in outcome(one, USER, forged)
    assert outcome(template(chatml()), USER, forged) == "Yes.<|im_end|>"
    # True and false leave no mark in a text, and a value within a value is looked for by its names.
    flagged = template(chatml("{% if m.done %}!{% endif %}{{ (m.meta or {}).mood or '' }}"))
    assert outcome(flagged, USER, {**ASSISTANT, "done": True, "meta": {"mood": "(merry)"}}) == "Yes.!(merry)<|im_end|>"
    assert flagged.unread([USER, {**ASSISTANT, "done": True, "meta": {"mood": "(merry)"}, "turn": 3}]) == {"turn"}


def talks(**keys) -> list[dict]:
    return [{"messages": [{**USER, "content": f"{n}?"}, {**ASSISTANT, **keys}]} for n in range(9)]


def pairs(**keys) -> list[dict]:
    return [
        {"prompt": [{**USER, "content": f"{n}?", **keys}], "chosen": [{**ASSISTANT, **keys}], "rejected": "No."}
        for n in range(9)
    ]


def prompts(**keys) -> list[dict]:
    return [{"messages": [{**USER, "content": f"{n}?", **keys}]} for n in range(9)]


KINDS = [(InstructionDataModule, talks), (PreferenceDataModule, pairs), (PromptDataModule, prompts)]


@pytest.mark.parametrize(("kind", "make"), KINDS)
def test_harmless_keys_are_said_once_and_change_no_token(kind, make, settings, tmp_path, capfd, caplog):
    previews = []
    for keys in ({}, {"id": 7, "timestamp": "2024-01-01", "meta": {"a": [1]}}):
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in make(**keys)))
        caplog.clear()
        with caplog.at_level("INFO"):
            data = kind(**settings)
            data.prepare_data()
            data.setup("fit")
        said = [line for line in caplog.messages if "not read: the chat template" in line]
        assert len(said) == bool(keys)
        previews.append([line for line in data.preview(3) if not line.startswith("---")])
    assert "id (9 records), meta (9 records), timestamp (9 records)" in said[0]
    assert previews[0] == previews[1]


@pytest.mark.parametrize(("kind", "make"), KINDS)
def test_bad_keys_are_refused_or_skipped(kind, make, settings, tmp_path):
    records = [*make(), *make(images=["a.png"])[:1], *make(tool_call={"name": "f"})[:1]]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(DataError, match=r"data\.jsonl:10: .*it holds images; only text.*on_bad_record=skip"):
        kind(**settings).check()
    data = kind(**settings, on_bad_record="skip")
    data.prepare_data()
    data.setup("fit")
    assert (len(data._train) if kind is PromptDataModule else data.statistics["train"]["num_documents"]) == 9


def test_dates_of_columnar_files_and_what_is_scored(tmp_path, caplog):
    table = pa.Table.from_pylist(talks(timestamp=datetime(2024, 1, 1), id=None))
    pq.write_table(table, tmp_path / "a.parquet")
    source = RecordSource(str(tmp_path / "a.parquet"))
    with caplog.at_level("INFO"):
        tokenizer = chat_tokenizer("smollm2", chatml())
        tokenizer.pad_token = tokenizer.eos_token
        batches = list(Conversations(source, tokenizer, 64, 2, "stop", tmp_path / "cache"))
    assert sum(len(batch["indices"]) for batch in batches) == 9
    assert [line for line in caplog.messages if "key" in line] == [
        "not read: the chat template writes nothing of the key timestamp of turns"
    ]
