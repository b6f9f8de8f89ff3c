"""Messages about files whose records are not where they are looked for."""

import json
from pathlib import Path

import pytest

from datamodules.errors import DataError
from datamodules.records.record_source import RecordSource, record_units
from datamodules.records.text_source import TextSource, text_units

PAIR = {"question": "Q?", "answer": "A."}
OBJECTS = {
    "holds the arrays data (1 records): take one out with `jq -c '.data[]' FILE": {"data": [PAIR]},
    "rows (2 records) and meta.tags (1 texts): take one out with `jq -c '.rows[]'": {
        "rows": [PAIR, PAIR], "meta": {"tags": ["x"]},
    },
    """the arrays ["my set"].train (3 records): take one out with `jq -c '.["my set"].train[]'""": {
        "my set": {"train": [PAIR] * 3}
    },
}  # fmt: skip


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("words", OBJECTS)
def test_one_object_names_the_arrays_that_it_holds(words, name, indent, tmp_path, cache):
    path = tmp_path / name
    path.write_text(json.dumps(OBJECTS[words], indent=indent))
    for units, source in ((record_units, RecordSource(str(path))), (text_units, TextSource(str(path)))):
        with pytest.raises(DataError) as error:
            units(source, cache)
        assert words.replace("FILE", str(path)) in str(error.value)


def test_one_record_over_several_lines_is_a_record(tmp_path, cache):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "x"}]}, indent=2))
    assert [unit.shape for unit in record_units(RecordSource(str(path)), cache)] == ["messages"]
    path.write_text(json.dumps({"text": "x", "tags": ["a"]}, indent=2))
    assert [unit.column for unit in text_units(TextSource(str(path)), cache)] == ["text"]


def test_a_file_without_a_readable_record_says_what_the_first_one_is(tmp_path: Path, cache):
    path = tmp_path / "a.jsonl"
    path.write_text("\n'x'\n17\n")
    with pytest.raises(DataError, match=r"holds no record that can be read; the first: .*a\.jsonl:2: broken JSON"):
        record_units(RecordSource(str(path)), cache)
