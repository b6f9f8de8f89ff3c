"""What happens to a cache changes what is trained on in no way that is not said."""

import os
from pathlib import Path

import numpy as np
import pytest

from datamodules import DataError, TextDataModule
from datamodules.cache import content_digest
from datamodules.file_array import BLOCK, FileArray, SummedFile


def rows(path: str, cache: Path) -> list:
    data = TextDataModule(path, vocab_size=300, seq_len=64, batch_size=4, cache_dir=str(cache))
    data.prepare_data()
    data.setup("fit")
    return [batch["input_ids"].tolist() for batch in data.train_dataloader()]


@pytest.fixture
def path(write_jsonl, texts) -> str:
    return write_jsonl(texts[:40])


SHARDS = ["tokens/*/*.tokens", "tokens/*/*.documents", "tokens/*/*.json"]
FILES = [*SHARDS, "rows/*/rows", "rows/*/spans", "rows/*/facts.json"]


@pytest.mark.parametrize("pattern", FILES)
@pytest.mark.parametrize("left", [0, 0.5, 0.99, 1.01, None])
def test_what_is_cut_or_lost_is_made_anew(pattern, left, path, cache, capfd):
    before = rows(path, cache)
    files = [file for file in cache.glob(pattern) if file.name != "tokenizer.json"]
    assert files
    for file in files:
        data = file.read_bytes()
        file.unlink()
        if left is not None:
            file.write_bytes((data + b"}" * len(data))[: int(len(data) * left)])
    assert rows(path, cache) == before
    if pattern.startswith("tokens") and left is not None:
        assert "are not as they were written: they are made anew" in capfd.readouterr().err


@pytest.mark.parametrize("pattern", ["tokens/*/*.tokens", "tokens/*/*.documents", "rows/*/rows", "rows/*/spans"])
def test_a_bit_that_flipped_stops_the_run_and_the_next_one_is_right(pattern, path, cache):
    before = rows(path, cache)
    for file in cache.glob(pattern):
        data = bytearray(file.read_bytes())
        data[len(data) // 3] ^= 4
        file.write_bytes(data)
    if pattern.endswith("documents"):  # read when rows are packed
        import shutil

        shutil.rmtree(cache / "rows")
    with pytest.raises(DataError, match=r"is damaged .* start again, and it is made anew"):
        rows(path, cache)
    for _ in range(2):  # training and validation have rows of their own
        try:
            after = rows(path, cache)
        except DataError:
            continue
        break
    assert after == before


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 5 * BLOCK + 999])
def test_any_slice_of_any_size_is_what_was_written(size, tmp_path):
    rng = np.random.default_rng(size)
    data = rng.integers(0, 256, size, np.uint8).tobytes()
    with SummedFile(tmp_path / "a") as file:
        at = 0
        while at < size:
            step = int(rng.integers(1, 3000))
            file.write(data[at : at + step])
            at += step
    array = FileArray(str(tmp_path / "a"), np.dtype("u1"))
    assert len(array) == size and array[:].tobytes() == data
    for _ in range(50):
        begin, end = sorted(rng.integers(0, size + 1, 2).tolist())
        assert array[begin:end].tobytes() == data[begin:end]


def test_a_file_that_changed_at_the_same_size_and_time_is_read_again(tmp_path, monkeypatch):
    file, root = tmp_path / "a.txt", tmp_path / "cache"
    file.write_text("one text")
    monkeypatch.setattr("datamodules.cache.SECONDS_UNTIL_A_FILE_RESTS", -1)
    first, stat = content_digest(file, root), file.stat()
    assert (root / "digests").exists() and content_digest(file, root) == first
    file.write_text("two text")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    assert content_digest(file, root) != first


def test_nothing_is_remembered_of_a_file_that_has_just_changed(tmp_path):
    file, root = tmp_path / "a.txt", tmp_path / "cache"
    file.write_text("one text")
    first = content_digest(file, root)
    assert not (root / "digests").exists()
    file.write_text("two text")
    assert content_digest(file, root) != first
