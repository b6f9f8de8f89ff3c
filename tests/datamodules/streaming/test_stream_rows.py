"""A stream serves what the same files give when they lie here, and takes no more of the disk than it says."""

from itertools import islice
from pathlib import Path

import pytest

from datamodules import StreamingTextDataModule, TextDataModule
from datamodules.errors import DataError


def rows_of(loader, count: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for batch in loader:
        rows += batch["input_ids"][(batch["labels"] != -100).any(1)].tolist()
        if len(rows) >= count:
            break
    return rows[:count]


@pytest.fixture
def opened(tokenizer, cache):
    """DataModules that are ready, and are closed behind the test."""
    made = []

    def make(kind, path, **more):
        data = kind(path, tokenizer=tokenizer, seq_len=64, batch_size=4, cache_dir=str(cache), **more)
        data.prepare_data()
        data.setup("fit")
        made.append(data)
        return data

    yield make
    for data in made:
        data.teardown("fit")


@pytest.mark.parametrize("name", ["part-0.jsonl", "part-1.jsonl.gz", "part-3.parquet", "part-4.txt"])
def test_without_shuffling_it_is_what_the_file_gives_here(server, shards, opened, name):
    here = opened(TextDataModule, str(shards / name), val_share=0)
    count = here.num_rows("train")
    expected = rows_of(here.in_order("train"), count)
    stream = opened(StreamingTextDataModule, f"{server.url}/{name}", val_share=0, shuffle=False)
    assert rows_of(stream.train_dataloader(), count) == expected and count > 5


def test_what_is_held_out_here_is_held_out_there_by_the_text_alone(server, shards, opened, tmp_path):
    """Copies of a document in other files stay on its side."""
    copy = tmp_path / "shards" / "part-9.jsonl"
    copy.write_bytes((shards / "part-0.jsonl").read_bytes())
    stream = opened(StreamingTextDataModule, f"{server.url}/", val_share=0.2, window_tokens=10**5)
    val = stream.statistics["val"]["num_documents"]
    assert 10 < val < 60
    text = stream.tokenizer
    held = {part.split(".")[0] for row in rows_of(stream.val_dataloader(), 10**6) for part in parts(text, row)}
    trained = [
        part.split(".")[0] for row in rows_of(islice(stream.train_dataloader(), 20), 10**6) for part in parts(text, row)
    ]
    assert held and not held & set(trained)


def parts(tokenizer, row: list[int]) -> list[str]:
    return tokenizer.decode(row).split("Document ")[1:]


def test_it_takes_three_windows_and_two_files_of_the_disk(server, opened, cache):
    stream = opened(StreamingTextDataModule, f"{server.url}/", window_tokens=1500)
    most_windows = most_copies = 0
    for _ in islice(stream.train_dataloader(), 120):
        most_windows = max(most_windows, len(list(cache.glob("streams/*/[0-9]*/"))))
        most_copies = max(most_copies, len(list(cache.glob("streams/copies-*/*/*"))))
    assert stream._windows.opened[0].place.number > 8
    assert 2 <= most_windows <= 3 and most_copies <= 2
    assert len(list(cache.glob("streams/*/*.lock"))) <= 4


def test_a_disk_without_room_is_refused_before_anything_is_read(server, opened):
    with pytest.raises(DataError, match=r"window_tokens: the stream takes up to .* GB of the disk"):
        opened(StreamingTextDataModule, f"{server.url}/", window_tokens=10**15)
    assert server.asked["part-0.jsonl"] == 0


def test_several_urls_local_files_and_what_validates_beside_them(server, shards, opened, tmp_path):
    val = tmp_path / "val.jsonl"
    val.write_text('{"text": "A text to validate on."}\n' * 3)
    paths = [f"{server.url}/part-1.jsonl.gz", str(shards / "part-0.jsonl")]
    stream = opened(StreamingTextDataModule, paths, val_path=str(val), shuffle=False)
    assert stream.statistics["val"]["num_documents"] == 3
    assert len(rows_of(stream.train_dataloader(), 30)) == 30
    assert stream.describe()["num_files"] == 2 and Path(paths[1]).exists()


def test_of_a_folder_what_is_for_training_trains(server, shards, opened):
    for name, split in (("part-0.jsonl", "train"), ("part-1.jsonl.gz", "test")):
        (shards / name).rename(shards / name.replace("part", split))
    stream = opened(StreamingTextDataModule, f"{server.url}/")
    assert stream.describe()["num_files"] == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokenizer": None}, "tokenizer: a stream is read once"),
        ({"patience": 0}, "patience: it must be above 0"),
        ({"window_tokens": 10}, "window_tokens: it must be at least 64"),
    ],
)
def test_settings_that_make_no_sense(settings, words, cache):
    data = StreamingTextDataModule("http://127.0.0.1:1/a.jsonl", **{"seq_len": 64, "tokenizer": "t", **settings})
    with pytest.raises(DataError, match=words):
        data.check()


def test_what_needs_all_of_it_is_refused(server, opened):
    stream = opened(StreamingTextDataModule, f"{server.url}/part-0.jsonl")
    with pytest.raises(DataError, match="the rows of a stream are not numbered"):
        stream.in_order("train")
    with pytest.raises(DataError, match="cannot be looked for in it"):
        stream.training_texts()
