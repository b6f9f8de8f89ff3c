"""JSON of every layout, and what of it a record must not have."""

import json
from pathlib import Path

import pytest

from datamodules.errors import DataError
from datamodules.sources import text_files
from datamodules.sources.formats import FORMATS, records
from datamodules.sources.units import Bad, Unit


def read(path: Path, text: str | bytes, format: str = "") -> list:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    format = format or path.suffix[1:]
    found = []
    for start, stop, _ in FORMATS[format].split(str(path)):
        unit = Unit(str(path), format, "", start, stop)
        found += [
            f"{FORMATS[format].locate(unit, place).removeprefix(str(path))} {record.reason}"
            if isinstance(record, Bad) else record
            for place, record in records(unit)
        ]  # fmt: skip
    return found


RECORDS = [
    {"text": f'record {i}, [brackets], {{braces}} and "quotes" \\ é 🫀\n', "n": [i, {"x": None}]} for i in range(9)
]
LAYOUTS = {
    "lines": "\n".join(map(json.dumps, RECORDS)),
    "array": json.dumps(RECORDS),
    "array over lines": json.dumps(RECORDS, indent=2, ensure_ascii=False),
    "array, a record a line": "[\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]\n",
    "objects over lines": "\n".join(json.dumps(record, indent=1) for record in RECORDS) + "\n",
    "with a byte order mark": "\ufeff" + json.dumps(RECORDS, indent=4),
}


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_same_records(layout, suffix, tmp_path, monkeypatch):
    assert read(tmp_path / f"a.{suffix}", LAYOUTS[layout]) == RECORDS
    # Whatever the pieces in which the file is read.
    from datamodules.sources import json_format

    for size in (1, 7, 64):
        monkeypatch.setattr(json_format, "BUFFER_BYTES", size)
        assert read(tmp_path / f"a.{suffix}", LAYOUTS[layout]) == RECORDS


DIGITS = "9" * 4301
DEEP = '{"a": ' * 101 + "1" + "}" * 101
UNFIT = {
    f'{{"text": "x", "n": {DIGITS}}}': "a number has more than 4,300 digits",
    f'{{"n": [-{DIGITS}]}}': "a number has more than 4,300 digits",
    DEEP: "JSON nested too deeply",
    "[" * 100_000: "JSON nested too deeply",
    '{"a": ' * 100_000: "JSON nested too deeply",
    '{"text": "one", "text": "two"}': "the key 'text' stands twice in one object",
    '{"a": {"b": 1, "\\ud800": 2, "b": 3}}': "the key 'b' stands twice",
    f'{{"n": {DIGITS}, "a": ' + "[" * 100_000: "a number has more than 4,300 digits",
    '{"a": {"b": 1, "b": 3}, "c": ' + "[" * 100_000: "the key 'b' stands twice",
    '{"text": "x"} {"text": "y"}': "a second value at column 15",
    '"text"': "a record must be an object, not str",
    "17": "a record must be an object, not int",
    "null": "a record must be an object, not NoneType",
    '{"text": "x"': "broken JSON (Expecting ',' delimiter at column 13)",
    '{"text": "x': "broken JSON (Unterminated string starting at column 10)",
    "{'text': 1}": "broken JSON (Expecting property name enclosed in double quotes at column 2)",
}


@pytest.mark.parametrize("line", UNFIT, ids=lambda line: line[:20])
def test_what_a_record_must_not_have_is_named_by_its_line(line, tmp_path):
    found = read(tmp_path / "a.jsonl", f'{{"text": "a"}}\n{line}\n{{"text": "b"}}\n')
    assert found[0] == {"text": "a"} and found[2:] == [{"text": "b"}]
    assert found[1].startswith(":2 ") and UNFIT[line] in found[1]


@pytest.mark.parametrize("line", list(UNFIT)[:3] + list(UNFIT)[5:7], ids=lambda line: line[:20])
def test_in_an_array_too_and_the_next_records_are_read(line, tmp_path):
    found = read(tmp_path / "a.json", f'[{{"text": "a"}}, {line}, {{"text": "b"}}]')
    assert found[0] == {"text": "a"} and found[2:] == [{"text": "b"}]
    assert found[1].startswith(", record 2 ") and UNFIT[line] in found[1]


BROKEN = {
    "not readable as JSON (Expecting ',' delimiter, in line 3)": '[\n{"a": 1}\n{"a": 2}]',
    "not readable as JSON (Expecting value, in line 3)": '[\n{"a": 1},\n{"a": },\n{"a": 2}]',
    "not readable as JSON (Extra data, in line 2)": '[{"a": 1}]\n{"a": 1}',
    "not readable as JSON (The array does not end, in line 2)": '[\n{"a": 1}',
    "not readable as JSON (Expecting value, in line 4)": '{\n"a": 1}\n{\n}}{',
    "byte 0xf1 is not UTF-8": '[\n{"a": "España"}]'.encode("latin-1"),
}


@pytest.mark.parametrize("words", BROKEN)
def test_what_is_no_json_is_named_by_file_and_line(words, tmp_path):
    with pytest.raises(DataError) as error:
        read(tmp_path / "a.json", BROKEN[words])
    assert words in str(error.value) and str(tmp_path / "a.json") in str(error.value)


def test_infinity_and_not_a_number_are_read_as_pandas_writes_them(tmp_path):
    (record,) = read(tmp_path / "a.jsonl", '{"n": [NaN, Infinity, -Infinity, 1e999]}\n')
    assert str(record["n"]) == "[nan, inf, -inf, inf]"


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_line_too_long_to_be_held_is_named_in_every_unit_and_the_next_ones_are_read(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_RECORD", 1000)
    monkeypatch.setattr(text_files, "BUFFER_BYTES", 100)
    text = '{"text": "a"}\n{"text": "' + "x" * 5000 + '"}\n{"text": "b"}\n'
    for unit_bytes in (1 << 20, 512, 70):
        monkeypatch.setattr(text_files, "unit_bytes", lambda _, size=unit_bytes: size)
        one, long, other = read(tmp_path / f"a.{suffix}", text)
        assert one == {"text": "a"} and other == {"text": "b"}
        assert long.startswith(":2 ") and "this line is longer than" in long
    with pytest.raises(DataError, match=r"line 2: this record is longer"):
        monkeypatch.setattr("datamodules.sources.json_format.BUFFER_BYTES", 100)
        read(tmp_path / "a.json", '[{"text": "a"},\n{"text": "' + "x" * 5000 + '"}]')


@pytest.mark.parametrize("format", ["jsonl", "csv", "txt"])
def test_what_is_no_text_is_named(format, tmp_path):
    for data, words in ((b"\x1f\x8b\x08\x00", "add .gz to its name"), (b"PAR1\x15", "call it .parquet")):
        with pytest.raises(DataError, match=words):
            read(tmp_path / f"a.{format}", data + b'{"text": "x"}\n')


@pytest.mark.parametrize("half", [b"\xed\xa0\x80", b"\xed\xb0\x80\xed\xb0\x80"])
def test_half_a_character_in_a_broken_first_line_hides_no_other(half, tmp_path):
    found = read(tmp_path / "a.jsonl", b'{"a": : "' + half + b'"}\n{"a": 1}\n{"a": 2}')
    assert found[1:] == [{"a": 1}, {"a": 2}] and found[0].startswith(":1 byte 0xed is not UTF-8")
