"""Columnar files: text that is not UTF-8, objects that arrow fills up, and the tokens of the same records as JSON."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules import DataError, InstructionDataModule, PreferenceDataModule, PromptDataModule, TextDataModule
from datamodules.sources.formats import records
from datamodules.sources.units import Bad, Unit
from tests.datamodules.chat_tokenizers import chat_tokenizer
from tests.datamodules.test_template_probe import ASSISTANT, RESULT, USER, WITH_TOOLS, tool

DAMAGE = {b"@@@@": b"\xed\xa0\x80\xff", b"####": b"caf\xe9"}


@pytest.fixture
def settings(tmp_path):
    chat_tokenizer("smollm2", WITH_TOOLS).save_pretrained(tmp_path / "tokenizer")
    return {"tokenizer": str(tmp_path / "tokenizer"), "cache_dir": str(tmp_path / "cache"), "val_share": 0.0}


def write(path: Path, table: pa.Table) -> str:
    if path.suffix == ".parquet":
        pq.write_table(table, path, compression="none", store_schema=False)
    else:
        with pa.ipc.new_file(path, table.schema) as file:
            file.write_table(table)
    content = path.read_bytes()
    for marks, damage in DAMAGE.items():
        content = content.replace(marks, damage)
    path.write_bytes(content)
    return str(path)


def said(n: object) -> list[dict]:
    return [{"role": "user", "content": f"Is it {n}?"}, {"role": "assistant", "content": f"It is {n}."}]


KINDS = {
    "text": (TextDataModule, lambda n: {"text": f"It is {n}."}),
    "instruction": (InstructionDataModule, lambda n: {"messages": said(n), "tag": "x"}),
    "preference": (PreferenceDataModule, lambda n: {"prompt": f"Is it {n}?", "chosen": f"{n}.", "rejected": "No."}),
    "prompt": (PromptDataModule, lambda n: {"question": f"Is it {n}?", "answer": "1"}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_bytes_that_are_no_utf8_are_named_by_row_or_skipped(form, kind, settings, tmp_path):
    build, make = KINDS[kind]
    path = write(tmp_path / f"a.{form}", pa.Table.from_pylist([make(n) for n in (0, 1, "@@@@", 3, "####", 5)]))
    with pytest.raises(DataError, match=rf"a\.{form}, row 3: column '\w+': its byte 0xed is not UTF-8.*=skip"):
        build(path=path, **settings).check()
    data = build(path=path, on_bad_record="skip", **settings)
    data.prepare_data()
    data.setup("fit")
    assert (len(data._train) if kind == "prompt" else data.statistics["train"]["num_documents"]) == 4


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_bytes_that_are_no_utf8_in_every_type_of_text(kind, tmp_path):
    texts = pa.array(["one", "####" * 9, "two", None]).cast(kind)
    write(tmp_path / "a.arrow", pa.table({"n": [0, 1, 2, 3], "text": texts}))
    read = [record for _, record in records(Unit(str(tmp_path / "a.arrow"), "arrow", "", column=""))]
    assert read[::2] == [{"n": 0, "text": "one"}, {"n": 2, "text": "two"}] and read[3]["text"] is None
    assert isinstance(read[1], Bad) and read[1].reason.startswith("column 'text': its byte 0xe9 is not UTF-8")


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_a_damaged_file_is_named(form, settings, tmp_path):
    table = pa.Table.from_pylist([{"text": f"It is {n}." * 50, "@@@@": n} for n in range(2000)])
    path = write(tmp_path / f"a.{form}", table)
    with pytest.raises(DataError, match=rf"a\.{form}: the name of a column is not UTF-8"):
        TextDataModule(path=path, **settings).check()
    sound = pa.table({"text": table["text"]})
    if form == "parquet":
        pq.write_table(sound, path, compression="zstd")
    else:
        with pa.ipc.new_file(path, sound.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
            file.write_table(sound)
    content = bytearray(Path(path).read_bytes())
    middle = len(content) // 3
    content[middle : middle + 200] = b"U" * 200
    Path(path).write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.{form} is damaged \(.*\); fetch it again"):
        TextDataModule(path=path, **settings).prepare_data()


def called(arguments: object, *others: dict) -> dict:
    calls = [{"type": "function", "function": {"name": "weather", "arguments": arguments}}, *others]
    schemas = [tool(town={"type": "string"}), tool("clock", zone={"type": "string"})]
    turn = {"role": "assistant", "content": "", "tool_calls": calls}
    return {"messages": [USER, turn, {**RESULT, "name": "weather"}, ASSISTANT], "tools": schemas}


CLOCK = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "CET"}}}
DIFFERING = [called({"town": "Utrecht"}), called({"days": [1, 2]}, CLOCK), called({"town": "Delft", "at": {"h": 1}})]
WITH_NULLS = [called({"town": None, "days": [None]}), called({"town": "Delft"}), called({"at": {"h": None}}, CLOCK)]


def as_json_text(record: dict) -> dict:
    """The record with its arguments as JSON."""
    record = json.loads(json.dumps(record))
    for call in record["messages"][1]["tool_calls"]:
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return record


def ids(path: str, settings: dict) -> list[list[int]]:
    data = InstructionDataModule(path=path, seq_len=1024, **settings)
    data.prepare_data()
    data.setup("fit")
    return sorted(piece.ids.tolist() for piece in (data.make_prompts(data._train).documents[n] for n in range(3)))


def lines(path: Path, talks: list[dict]) -> str:
    path.write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    return str(path)


@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("talks", [DIFFERING, list(map(as_json_text, WITH_NULLS))], ids=["objects", "nulls as text"])
def test_calls_give_the_same_tokens_from_pyarrow(talks, form, settings, tmp_path):
    path = write(tmp_path / f"a.{form}", pa.Table.from_pylist(talks))
    assert ids(path, settings) == ids(lines(tmp_path / "a.jsonl", talks), settings)


@pytest.mark.parametrize("form", ["parquet", "arrow", "hub"])
@pytest.mark.parametrize("talks", [DIFFERING, WITH_NULLS, list(map(as_json_text, WITH_NULLS))],
                         ids=["objects", "nulls", "nulls as text"])  # fmt: skip
@pytest.mark.parametrize("stored", ["structs", "json"])
def test_calls_give_the_same_tokens_from_datasets(stored, talks, form, settings, tmp_path, monkeypatch):
    import datasets

    expected = ids(lines(tmp_path / "a.jsonl", talks), settings)
    made = datasets.Dataset.from_list(talks) if stored == "structs" else datasets.Dataset.from_list(
        talks, features=datasets.Features({"messages": datasets.List(datasets.Json()), "tools": datasets.Json()})
    )  # fmt: skip
    (tmp_path / "set").mkdir()
    if form == "arrow":
        made.save_to_disk(tmp_path / "set")
        (file,) = (tmp_path / "set").glob("*.arrow")
    else:
        file = tmp_path / "set" / "train.parquet"
        made.to_parquet(file)
    if form == "hub":
        units = [Unit(str(tmp_path / "set"), "hub", "set@")]
        monkeypatch.setattr("datamodules.records.record_source.resolve", lambda *_: units)
        monkeypatch.setattr("datamodules.records.record_source.first_units", lambda *_: [])
    found = ids(str(file), settings)
    # In structs arrow has no way to tell a null that was meant from a key that is not there.
    is_kept = talks is not WITH_NULLS or stored == "json"
    assert found == expected if is_kept else len(set(map(tuple, found)) & set(map(tuple, expected))) == 1
