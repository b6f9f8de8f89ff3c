import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from datamodules.errors import DataError
from datamodules.records.text_source import TextSource, text_units, texts_of
from datamodules.sources import text_files
from datamodules.sources.bad_records import BadRecords
from tests.datamodules.conftest import EMOJI, SPANISH


def read(path: Path | str, cache: Path, on_bad_record: str = "stop", **options) -> list[str]:
    units = text_units(TextSource(str(path), **options), cache)
    return [text for unit in units for text in texts_of(unit, BadRecords(unit, on_bad_record))]


def json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def write_csv(path: Path, texts: list[str], delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([["n", "text"], *([i, text] for i, text in enumerate(texts))])


def write_arrow_file(path: Path, texts: list[str]) -> None:
    table = pa.table({"text": texts})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_parquet(path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"n": range(len(texts)), "text": texts}), path, row_group_size=10)


WRITERS = {
    "a.jsonl": lambda path, texts: path.write_bytes(json_lines(texts)),
    "a.json": lambda path, texts: path.write_text(json.dumps([{"text": text} for text in texts], indent=1)),
    "lines.json": lambda path, texts: path.write_bytes(json_lines(texts)),
    "a.jsonl.gz": lambda path, texts: path.write_bytes(gzip.compress(json_lines(texts))),
    "a.jsonl.zst": lambda path, texts: path.write_bytes(
        # Two frames, as parallel compressors write them.
        zstandard.compress(json_lines(texts[:100])) + zstandard.compress(json_lines(texts[100:]))
    ),
    "a.csv": write_csv,
    "a.tsv": lambda path, texts: write_csv(path, texts, "\t"),
    "a.parquet": write_parquet,
    "a.arrow": write_arrow_file,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_texts_that_were_written(name, tmp_path, cache, texts):
    texts = [SPANISH, EMOJI, 'commas, "quotes"\nand lines', *texts]
    WRITERS[name](tmp_path / name, texts)
    assert read(tmp_path / name, cache) == texts


def test_a_folder_saved_by_datasets_is_read_split_by_split(tmp_path, cache, texts):
    import datasets

    splits = {
        name: datasets.Dataset.from_dict({"text": texts[a:b]}) for name, a, b in (("train", 0, 9), ("test", 9, 12))
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved", cache) == texts[:9]
    assert read(tmp_path / "saved", cache, split="test") == texts[9:12]


def test_a_hub_data_set_streams_shard_by_shard(tmp_path, texts, monkeypatch):
    """The hub cannot be reached here; `datasets` reads a local repository by the same calls."""
    from datamodules.sources import hub

    repository = tmp_path / "repository"
    repository.mkdir()
    for shard in range(3):
        (repository / f"part{shard}.jsonl").write_bytes(json_lines(texts[shard * 50 : shard * 50 + 50]))
    monkeypatch.setattr(hub, "_revision", lambda path: None)
    units = hub.hub_units(str(repository), None, "train", tmp_path / "cache")
    assert len(units) == 3
    assert [text for unit in units for text in texts_of(unit, BadRecords(unit))] == texts[:150]
    monkeypatch.setattr(hub, "_revision", lambda path: (_ for _ in ()).throw(ConnectionError()))
    assert hub.hub_units(str(repository), None, "train", tmp_path / "cache") == units


def test_folders_and_globs_take_what_can_be_read_in_a_stable_order(tmp_path, cache):
    for name in ("b/2.txt", "a/1.txt", "a/README", ".hidden/3.txt"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(f"text of {name}")
    assert read(tmp_path / "data", cache) == ["text of a/1.txt", "text of b/2.txt"]
    assert read(tmp_path / "data/**/2.txt", cache) == ["text of b/2.txt"]


@pytest.mark.parametrize("ending", ["\n\n", "\n", " "])
def test_a_long_text_is_cut_at_blank_lines_or_lines_and_loses_nothing(ending, tmp_path, cache, monkeypatch):
    text = ending.join(f"{i} {SPANISH} {EMOJI}" for i in range(4000))
    path = tmp_path / "book.txt"
    path.write_text(text)
    whole = read(path, cache)
    assert "".join(whole) == text
    assert len(whole) == -(-len(text.encode()) // text_files.BLOCK_BYTES)
    assert all(document.endswith(ending) for document in whole[:-1]) or ending == " "
    # Cut into ranges for several processes, the documents are the same.
    monkeypatch.setattr(text_files, "unit_bytes", lambda _: 2 * text_files.BLOCK_BYTES)
    assert len(text_units(TextSource(str(path)), cache)) > 3
    assert read(path, cache) == whole
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read(tmp_path / "book.txt.gz", cache) == whole


@pytest.mark.parametrize("unit_bytes", [1, 97, 4096])
def test_json_lines_in_ranges_of_any_size_are_each_read_once(unit_bytes, tmp_path, cache, texts, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines([text[:60] for text in texts[:40]]).replace(b"\n", b"\r\n\n").rstrip())
    monkeypatch.setattr(text_files, "unit_bytes", lambda _: unit_bytes)
    assert read(path, cache) == [text[:60] for text in texts[:40]]


def test_parquet_row_groups_are_gathered_into_units_and_each_read_once(tmp_path, cache, texts, monkeypatch):
    from datamodules.sources import table_formats

    write_parquet(tmp_path / "a.parquet", texts)
    monkeypatch.setattr(table_formats, "unit_bytes", lambda _: 40_000)
    units = text_units(TextSource(str(tmp_path / "a.parquet")), cache)
    assert 3 < len(units) < 24
    assert [text for unit in units for text in texts_of(unit, BadRecords(unit))] == texts


def test_byte_order_marks_surrogates_nul_and_empty_texts(tmp_path, cache):
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "a\\ud83d b"}\n\n{"text": ""}\n{"text": "nul \\u0000 x"}\n'
    )
    assert read(tmp_path / "a.jsonl", cache) == ["a� b", "nul \x00 x"]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert read(tmp_path / "a.txt", cache) == ["one\ntwo"]


@pytest.mark.parametrize(
    ("record", "options", "column"),
    [
        ({"body": "x", "n": 1}, {}, "body"),
        ({"text": "t", "title": "x"}, {}, "text"),
        ({"text": "t", "title": "x"}, {"text_column": "title"}, "title"),
    ],
)
def test_which_column_holds_the_text(record, options, column, tmp_path, cache):
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    assert read(tmp_path / "a.jsonl", cache, **options) == [record[column]]


BAD_LINES = {
    b'{"text": "broken"': "broken JSON",
    b'["text"]': "must be an object",
    b'{"title": "x"}': "no column 'text'; it has: title",
    b'{"text": 7}': "holds int",
    '{"text": "España"}'.encode("latin-1"): "byte 0xf1 is not UTF-8; if the file is Latin-1: `iconv",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_stops_with_file_and_line_or_is_skipped_and_counted(line, tmp_path, cache, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": "two"}\n' + line + b'\n{"text": "three"}\n')
    monkeypatch.setattr(
        text_files, "unit_bytes", lambda _: 24
    )  # the line's number is right in the middle of a file, too
    with pytest.raises(DataError) as error:
        read(path, cache)
    assert f"{path}:3: " in str(error.value)
    assert BAD_LINES[line] in str(error.value)
    assert "on_bad_record=skip" in str(error.value)
    assert read(path, cache, "skip") == ["one", "two", "three"]


def test_latin_1_text_and_csv_name_the_line(tmp_path, cache):
    (tmp_path / "a.txt").write_bytes("uno\ndos\nEspaña\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt:3: byte 0xf1 is not UTF-8"):
        read(tmp_path / "a.txt", cache)
    (tmp_path / "a.csv").write_bytes("text\nuno\nEspaña\ndos\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.csv:3: byte 0xf1 is not UTF-8"):
        read(tmp_path / "a.csv", cache)
    assert read(tmp_path / "a.csv", cache, "skip") == ["uno", "dos"]
    (tmp_path / "b.txt").write_bytes("uno".encode("utf-16"))
    with pytest.raises(DataError, match=r"UTF-16"):
        read(tmp_path / "b.txt", cache)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
def test_a_cut_off_file_is_named(name, tmp_path, cache, texts):
    WRITERS[name](tmp_path / name, texts)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        read(tmp_path / name, cache)


def test_units_suit_small_files_and_big_ones():
    sizes = {size: text_files.unit_bytes(size) for size in (10**3, 10**7, 10**9, 10**11)}
    assert all(unit % text_files.BLOCK_BYTES == 0 for unit in sizes.values())
    assert [round(size / unit) for size, unit in sizes.items()] == [0, 10, 64, 2980]


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        (
            "Story one ends here.\n<|endoftext|>\nStory two begins.\n<|endoftext|>\n",
            ["Story one ends here.", "Story two begins."],
        ),
        ("one<|endoftext|>two", ["one", "two"]),
        ("<|endoftext|>\r\none\r\n\r\nmore\r\n<|endoftext|><|endoftext|>", ["one\n\nmore"]),
        ("no mark <|endoftext>\n", ["no mark <|endoftext>\n"]),
    ],
)
def test_the_end_of_text_parts_the_documents_of_a_text_file(text, documents, tmp_path, cache):
    (tmp_path / "stories.txt").write_bytes(text.encode())
    assert read(tmp_path / "stories.txt", cache) == documents


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv", "a.jsonl.zst"])
def test_a_text_too_long_to_be_tokenized_is_named_in_every_format(name, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_RECORD", 5000)
    texts = ["one", "long " * 2000, "two"]
    WRITERS.get(name, WRITERS["a.jsonl"])(tmp_path / name, texts) if name != "a.jsonl.zst" else (
        tmp_path / name
    ).write_bytes(zstandard.compress(json_lines(texts)))
    with pytest.raises(DataError, match=rf"{name}(:|, row )\d.* is longer than"):
        read(tmp_path / name, cache)
    assert read(tmp_path / name, cache, "skip") == ["one", "two"]
