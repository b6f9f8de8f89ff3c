"""What happens to a cache changes what is trained on in no way that is not said."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from datamodules import DataError, PromptDataModule, TextDataModule
from datamodules.cache import content_digest
from datamodules.corpora import corpus_file
from datamodules.encoding.tokenizer import train
from datamodules.storage.file_array import BLOCK, FileArray, SummedFile


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


def damage(file: Path, how: str) -> None:
    """Flips a bit of the file at a place, cuts it, empties it, or takes it away."""
    data = file.read_bytes()
    file.unlink()
    if how.startswith("flip"):
        place = int(float(how.split()[1]) * (len(data) - 1))
        file.write_bytes(data[:place] + bytes([data[place] ^ 2]) + data[place + 1 :])
    elif how != "missing":
        file.write_bytes(data[: len(data) // 2 if how == "cut" else 0])


HOW = ["flip 0", "flip 0.1", "flip 0.5", "flip 0.9", "flip 1", "cut", "empty", "missing"]


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("named")
    train(iter(["what is 1 plus 2? three"] * 9), vocab_size=300).save_pretrained(folder)
    return str(folder)


def prompts(path: str, tokenizer: str, cache: Path) -> list:
    data = PromptDataModule(path, tokenizer=tokenizer, batch_size=4, val_share=0.1, cache_dir=str(cache))
    data.prepare_data()
    data.setup("fit")
    loaders = (data.train_dataloader(), data.val_dataloader())
    return [(b["prompt_ids"].tolist(), b["prompts"], b["columns"]) for loader in loaders for b in loader]


@pytest.mark.parametrize("name", ["prompts.arrow", "facts.json", "seal.json"])
@pytest.mark.parametrize("how", HOW)
def test_prompts_that_a_disk_changed_are_made_anew(name, how, tmp_path, named, cache, capfd):
    path = str(tmp_path / "prompts.jsonl")
    lines = [json.dumps({"prompt": f"What is {i}?", "answer": i}) for i in range(60)]
    Path(path).write_text("\n".join(lines))
    before = prompts(path, named, cache)
    assert len(before) > 10 and "anew" not in capfd.readouterr().err
    assert prompts(path, named, cache) == before and "anew" not in capfd.readouterr().err
    (file,) = cache.glob(f"prompts/*/{name}")
    damage(file, how)
    assert prompts(path, named, cache) == before
    lines = [
        line for line in capfd.readouterr().err.splitlines() if "is not as it was written: it is made anew" in line
    ]
    assert len(lines) == 1 and "(prompts)" in lines[0] and str(file.parent) in lines[0]
    assert prompts(path, named, cache) == before and "anew" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "seal.json"])
@pytest.mark.parametrize("how", HOW)
def test_a_tokenizer_that_a_disk_changed_is_trained_anew(name, how, path, cache, capfd):
    before = rows(path, cache)
    made = {file.name: file.read_bytes() for file in cache.glob("tokenizers/*/*")}
    (file,) = cache.glob(f"tokenizers/*/{name}")
    damage(file, how)
    capfd.readouterr()
    assert rows(path, cache) == before
    assert capfd.readouterr().err.count("(a tokenizer) is not as it was written: it is made anew") == 1
    assert {file.name: file.read_bytes() for file in cache.glob("tokenizers/*/*")} == made


@pytest.mark.parametrize("how", [pytest.param("flip 0.5", marks=pytest.mark.slow), "cut"])
def test_a_corpus_that_a_disk_changed_is_written_anew(how, tmp_path, capfd):
    file = corpus_file("python_pairs", tmp_path)
    data = file.read_bytes()
    damage(file, how)
    assert corpus_file("python_pairs", tmp_path) == file and file.read_bytes() == data
    assert "is made anew" in capfd.readouterr().err


@pytest.mark.parametrize("pattern", ["tokens/*/*.json", "rows/*/facts.json", "digests/*.json"])
def test_what_is_noted_of_the_cache_is_the_same_after_any_flip(pattern, path, cache, monkeypatch):
    monkeypatch.setattr("datamodules.cache.SECONDS_UNTIL_A_FILE_RESTS", -1)
    before = rows(path, cache)
    files = [file for file in cache.glob(pattern) if file.name != "tokenizer.json"]
    assert files
    for place in (0, 0.2, 0.4, 0.6, 0.8, 1):
        for file in files:
            damage(file, f"flip {place}")
        assert rows(path, cache) == before
