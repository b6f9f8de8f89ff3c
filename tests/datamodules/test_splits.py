"""Which files of a folder train, validate, or are left out."""

import contextlib
import gzip
import json
from pathlib import Path

import pytest

from datamodules import DataError, TextDataModule, TextSource
from datamodules.sources import discover, found_files
from datamodules.sources.discover import find_files
from datamodules.sources.found_files import FoundFiles


def made_of(folder: Path, names: list[str]) -> Path:
    """Files of one text each, which is the file's name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = f'{{"text": "{name}"}}\n'.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


def names(folder: Path, split: str = "train") -> list[str]:
    return [
        Path(file).relative_to(folder).as_posix() for file in find_files(TextSource(str(folder), split=split)) or ()
    ]


# What trains, what validates, and what is left out.
FOLDERS = [
    (["train.jsonl"], ["validation.jsonl"], ["test.jsonl"]),
    (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"], [], ["data/test-00000-of-00001.jsonl"]),
    (["data/train_sft-00000-of-00001.jsonl"], [], ["data/test_sft-00000-of-00001.jsonl", "notes.jsonl"]),
    (["training/a.jsonl", "training/test.jsonl"], ["dev/a.jsonl"], ["eval/a.jsonl"]),
    (["my-train-1.jsonl.gz"], ["my_val.jsonl"], ["Testing 2.jsonl", "x.evaluation.jsonl"]),
    (["en/train/0.jsonl", "es/train/0.jsonl"], ["es/valid/0.jsonl"], ["en/test/0.jsonl"]),
    (["a.jsonl", "contest.jsonl", "latest/b.jsonl"], [], ["test.jsonl"]),
    (["train-clean-100/a.jsonl"], ["dev-clean/a.jsonl"], ["test-other/a.jsonl", "b.jsonl"]),
]


@pytest.mark.parametrize("split", FOLDERS)
def test_a_folder_s_names_say_what_trains_validates_and_is_left_out(split, tmp_path):
    train, validation, test = split
    folder = made_of(tmp_path / "data", [*train, *validation, *test])
    assert names(folder) == train
    assert names(folder, "all") == sorted([*train, *validation, *test])
    if validation:
        assert names(folder, "validation") == validation
    else:
        with pytest.raises(DataError, match="is for validation"):
            names(folder, "validation")


def test_names_are_those_that_datasets_goes_by(tmp_path):
    from datasets.data_files import get_data_patterns, resolve_pattern

    for number, (train, validation, test) in enumerate(FOLDERS[:2] + FOLDERS[5:6]):
        folder = made_of(tmp_path / str(number), [*train, *validation, *test])
        for split, patterns in get_data_patterns(str(folder)).items():
            theirs = set()
            for pattern in patterns:
                with contextlib.suppress(FileNotFoundError):
                    theirs |= set(resolve_pattern(pattern, str(folder)))
            assert theirs == {str(folder / name) for name in names(folder, str(split))}


def text_data(path: Path | str, cache: Path, **settings) -> TextDataModule:
    data = TextDataModule(str(path), vocab_size=260, seq_len=32, batch_size=1, cache_dir=str(cache), **settings)
    data.prepare_data()
    data.setup("fit")
    return data


def documents(data: TextDataModule, loader) -> set[str]:
    return {
        data.tokenizer.decode(ids[: (labels != -100).sum() + 1], skip_special_tokens=True)
        for batch in loader
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    }


@pytest.mark.parametrize("saved", [False, True])
def test_training_sees_train_alone_and_validation_validates(saved, tmp_path, cache, capsys):
    splits = {"train": ["t one", "t two"], "validation": ["v one"], "test": ["x one", "x two"]}
    folder = tmp_path / "set"
    if saved:
        import datasets

        sets = {split: datasets.Dataset.from_dict({"text": texts}) for split, texts in splits.items()}
        datasets.DatasetDict(sets).save_to_disk(folder)
    else:
        for split, texts in splits.items():
            path = folder / "data" / f"{split}-00000-of-00001.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = text_data(folder, cache)
    assert " ".join(documents(data, data.train_dataloader())) in ("t onet two", "t twot one", "t one t two")
    assert documents(data, data.val_dataloader()) == {"v one"}


def test_what_is_left_out_is_said_in_a_line(tmp_path, cache, caplog):
    folder = made_of(tmp_path / "data", ["train.jsonl", "dev.jsonl", "test.jsonl", "picture.png"])
    with caplog.at_level("INFO"):
        text_data(folder, cache)
    said = [record.message for record in caplog.records if str(folder) in record.message]
    assert said == [
        f"{folder}: splits by the files' names: train: 1 file, validation: 1 file; left out: test: 1 file",
        f"{folder}: not read, as of no known format: .png (1)",
    ]


def test_a_start_walks_through_a_folder_once(tmp_path, cache, monkeypatch):
    folder = made_of(tmp_path / "data", ["train.jsonl", "dev.jsonl", "test.jsonl"])
    looked = []

    def look(path: str) -> FoundFiles | None:
        looked.append(path)
        return found_files.look(path)

    monkeypatch.setattr(discover, "look", look)
    data = TextDataModule(str(folder), vocab_size=260, seq_len=32, batch_size=1, cache_dir=str(cache))
    data.check()  # the command line's own
    data.prepare_data()
    data.setup("fit")
    assert looked == [str(folder)]
    assert documents(data, data.val_dataloader()) == {"dev.jsonl"}


def test_a_named_share_or_path_validates_instead(tmp_path, cache):
    folder = made_of(tmp_path / "data", ["train-1.jsonl", "train-2.jsonl", "train-3.jsonl", "dev.jsonl", "test.jsonl"])
    data = text_data(folder, cache, val_share=0.4)
    assert data.statistics["train"]["num_documents"] == 2 and data.statistics["val"]["num_documents"] == 1
    assert "val" not in text_data(folder, cache, val_share=0.0).statistics
    other = made_of(tmp_path / "other", ["a.jsonl", "test.jsonl"])
    data = text_data(folder, cache, val_path=str(other))
    assert data.statistics["train"]["num_documents"] == 3
    assert documents(data, data.val_dataloader()) == {"test.jsonl"}


UNCLEAR = {
    "is for train, by their names (test: 1 file, validation: 1 file)": ["test.jsonl", "valid/a.jsonl"],
    "is for train, by their names (train_gen: 1 file, train_sft: 1 file, test: 1 file)": [
        f"data/{split}-00000-of-00001.jsonl" for split in ("train_gen", "train_sft", "test_gen")
    ],
    "(such as books/training-for-life.jsonl), and most do not": [
        "training-for-life.jsonl", "history.jsonl", "physics.jsonl",
    ],
}  # fmt: skip


@pytest.mark.parametrize("message", UNCLEAR)
def test_what_is_not_clear_is_refused_with_the_way_out(message, tmp_path, cache):
    folder = made_of(tmp_path / "books", UNCLEAR[message])
    with pytest.raises(DataError) as error:
        TextDataModule(str(folder), cache_dir=str(cache)).check()
    assert message in str(error.value) and "split" in str(error.value)


def test_a_file_or_a_glob_that_names_test_files_is_read(tmp_path, cache):
    folder = made_of(tmp_path / "data", ["test.jsonl", "test-2.jsonl", "train.jsonl"])
    assert find_files(TextSource(str(folder / "test.jsonl"))) == [str(folder / "test.jsonl")]
    assert find_files(TextSource(str(folder / "test*.jsonl"))) == [
        str(folder / "test-2.jsonl"),
        str(folder / "test.jsonl"),
    ]
    assert find_files(TextSource(str(folder / "*.jsonl"))) == [str(folder / "train.jsonl")]


def write_po(folder: Path, count: int) -> None:
    for number in range(count):
        (folder / f"{number}.po").write_text('msgid "x"\nmsgstr "y"\n')


def test_files_that_no_reader_knows_are_refused_where_they_are_most(tmp_path):
    folder = tmp_path / "po"
    folder.mkdir()
    (folder / "README.txt").write_text("All about these translations. " * 200)
    write_po(folder, 47)
    with pytest.raises(DataError, match=r"most of .* is of no known format \(\.po \(47\)\)"):
        find_files(TextSource(str(folder)))
    (folder / "notes.jsonl").write_text('{"text": "x"}')
    with pytest.raises(DataError, match="most of"):
        find_files(TextSource(str(folder)))
    with pytest.raises(DataError, match="most of"):
        find_files(TextSource(str(folder / "*")))
    assert find_files(TextSource(str(folder / "**" / "*.txt"))) == [str(folder / "README.txt")]
    (folder / "notes.jsonl").write_text('{"text": "x"}\n' * 1000)
    assert find_files(TextSource(str(folder))) == [str(folder / "README.txt"), str(folder / "notes.jsonl")]


def test_what_only_tells_about_data_does_not_count(tmp_path):
    folder = made_of(tmp_path / "data", ["a.jsonl"])
    for name in ("README.md", "LICENSE", "CITATION.cff"):
        (folder / name).write_text("many words " * 99)
    assert names(folder) == ["a.jsonl"]


def test_conversations_and_prompts_name_the_text_file(tmp_path, cache):
    from datamodules.records.record_source import RecordSource, record_units

    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "README.txt").write_text("about it")
    (folder / "data.jsonl").write_text('{"question": "Q?", "answer": "A."}\n')
    (folder / "notes.txt").write_text("more about it")
    with pytest.raises(DataError, match=r"path: '.*README\.txt' is plain text; records need columns"):
        record_units(RecordSource(str(folder)), cache)
