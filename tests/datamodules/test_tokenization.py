import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from datamodules.cache import build_lock
from datamodules.encoding.texts import TextEncoder
from datamodules.encoding.tokenization import encoder_digest, tokenize
from datamodules.encoding.tokenizer import train
from datamodules.errors import DataError
from datamodules.records.text_source import TextSource, text_units
from datamodules.sources import text_files
from datamodules.storage.shards import Shard

# Builds the tokens of argv[1] in the cache argv[2], in small units.
BUILD = """
import sys
from pathlib import Path
from datamodules import cache
from datamodules.sources import text_files
from datamodules.encoding import tokenization
from datamodules.records.text_source import TextSource, text_units
from datamodules.encoding.tokenizer import load_tokenizer
from datamodules.encoding.texts import TextEncoder
text_files.unit_bytes = lambda _: 8192
tokenization.available_cores = lambda: 2
root = Path(sys.argv[2])
tokenization.tokenize(text_units(TextSource(sys.argv[1]), root), TextEncoder.of(load_tokenizer(sys.argv[3])), root)
"""


@pytest.fixture(scope="module")
def tokenizer():
    return train(iter(["the cat sat on the mat", "el gato"] * 9), vocab_size=300)


@pytest.fixture
def small_units(monkeypatch):
    monkeypatch.setattr(text_files, "unit_bytes", lambda _: 8192)


@pytest.fixture
def command(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return lambda path, cache: [sys.executable, "-c", BUILD, path, str(cache), str(tmp_path / "tokenizer")]


def contents(shards: list[Shard], tokenizer) -> list[str]:
    documents = []
    for shard in shards:
        tokens, ends = shard.tokens[:], shard.documents()["end"].astype(int)
        documents += [tokenizer.decode(ids[:-1]) for ids in np.split(tokens, ends[:-1])] if len(ends) else []
    return documents


def test_processes_and_a_single_one_write_the_same_shards(
    write_jsonl, tmp_path, texts, tokenizer, small_units, monkeypatch
):
    path = write_jsonl(texts)
    written = []
    for cores in (1, 3):
        monkeypatch.setattr("datamodules.encoding.tokenization.available_cores", lambda cores=cores: cores)
        units = text_units(TextSource(path), tmp_path / str(cores))
        assert len(units) > 20
        shards = tokenize(units, TextEncoder.of(tokenizer), tmp_path / str(cores))
        written.append([(shard.statistics, shard.tokens[:].tobytes(), shard.documents().tobytes()) for shard in shards])
        assert contents(shards, tokenizer) == texts
    assert written[0] == written[1]
    assert shards[0].tokens.dtype == np.uint16
    assert sum(shard.statistics["num_bytes"] for shard in shards) == sum(len(text.encode()) for text in texts)


def test_only_what_changed_is_tokenized_again(write_jsonl, tmp_path, cache, texts, tokenizer):
    write_jsonl(texts[:10], "a.jsonl")
    before = tokenize(text_units(TextSource(str(tmp_path / "*.jsonl")), cache), TextEncoder.of(tokenizer), cache)
    written = Path(f"{before[0].path}.tokens").stat().st_mtime_ns
    write_jsonl(texts[10:20], "b.jsonl")
    after = tokenize(text_units(TextSource(str(tmp_path / "*.jsonl")), cache), TextEncoder.of(tokenizer), cache)
    assert after[0] == before[0] and Path(f"{after[0].path}.tokens").stat().st_mtime_ns == written
    assert contents(after, tokenizer) == texts[:20]
    write_jsonl(texts[1:11], "a.jsonl")
    changed = tokenize(text_units(TextSource(str(tmp_path / "*.jsonl")), cache), TextEncoder.of(tokenizer), cache)
    assert contents(changed, tokenizer) == texts[1:11] + texts[10:20]


@pytest.mark.parametrize("cores", [1, 2])
def test_a_bad_record_stops_or_is_skipped_also_when_it_is_in_the_cache(
    cores, write_jsonl, cache, texts, tokenizer, small_units, monkeypatch
):
    monkeypatch.setattr("datamodules.encoding.tokenization.available_cores", lambda: cores)
    path = write_jsonl(texts)
    with Path(path).open("a") as file:
        file.write("{broken\n")
    units = text_units(TextSource(path), cache)
    with pytest.raises(DataError, match=rf"{path}:241: broken JSON"):
        tokenize(units, TextEncoder.of(tokenizer), cache, "stop")
    assert contents(tokenize(units, TextEncoder.of(tokenizer), cache, "skip"), tokenizer) == texts
    with pytest.raises(DataError, match=rf"{path}:241: broken JSON"):
        tokenize(units, TextEncoder.of(tokenizer), cache, "stop")


def test_a_killed_build_leaves_no_process_and_goes_on_where_it_was(
    write_jsonl, tmp_path, cache, texts, tokenizer, command, small_units
):
    path = write_jsonl(texts * 20)
    build = subprocess.Popen(command(path, cache), stderr=subprocess.DEVNULL)
    deadline = time.time() + 240  # three shards and the tokenizer
    while len(list(cache.glob("tokens/*/*.json"))) < 4 and time.time() < deadline:
        time.sleep(0.005)
    workers = psutil.Process(build.pid).children()
    os.kill(build.pid, signal.SIGKILL)
    build.wait()
    assert len(workers) == 2
    psutil.wait_procs(workers, timeout=20)
    assert not any(worker.is_running() for worker in workers)
    done = {
        file: file.stat().st_mtime_ns for file in cache.glob("tokens/*/*.tokens") if file.with_suffix(".json").exists()
    }
    units = text_units(TextSource(path), cache)
    assert 3 <= len(done) < len(units)
    shards = tokenize(units, TextEncoder.of(tokenizer), cache)
    assert contents(shards, tokenizer) == texts * 20
    assert {file: file.stat().st_mtime_ns for file in done} == done
    assert not list(cache.glob("tokens/*/.*.tmp"))


def test_a_second_process_waits_says_so_and_builds_nothing_twice(
    write_jsonl, cache, texts, tokenizer, command, small_units
):
    path = write_jsonl(texts)
    units = text_units(TextSource(path), cache)
    folder = cache / "tokens" / encoder_digest(TextEncoder.of(tokenizer))
    with build_lock(folder, "this"):
        waiting = subprocess.Popen(command(path, cache), stderr=subprocess.PIPE, text=True)
        line = waiting.stderr.readline()
        assert re.search(r"Another process is building .*waiting for it", line)
        assert not list(folder.glob("*.json"))
    assert waiting.wait(timeout=240) == 0
    written = {file: file.stat().st_mtime_ns for file in folder.glob("*.tokens")}
    tokenize(units, TextEncoder.of(tokenizer), cache)
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*.tokens")} == written


def test_two_processes_at_once_build_each_shard_once(write_jsonl, cache, texts, tokenizer, command, small_units):
    path = write_jsonl(texts * 4)
    outcomes = []
    threads = [
        threading.Thread(
            target=lambda: outcomes.append(subprocess.run(command(path, cache), capture_output=True, text=True))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.returncode for outcome in outcomes] == [0, 0]
    assert sum("100%" in outcome.stderr for outcome in outcomes) == 1
    assert (
        contents(tokenize(text_units(TextSource(path), cache), TextEncoder.of(tokenizer), cache), tokenizer)
        == texts * 4
    )


def test_memory_does_not_grow_with_the_corpus(write_jsonl, tmp_path, texts, command):
    """Peak memory of a process that tokenizes one unit of 1 MB, and one of 16 MB whose encodings take some 500 MB."""
    code = BUILD.replace("8192", "1 << 30")
    code += "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    peaks = []
    for copies in (3, 48):
        path = write_jsonl(texts * copies, f"{copies}.jsonl")
        run = command(path, tmp_path / f"cache{copies}")
        run[2] = code
        peaks.append(int(subprocess.run(run, capture_output=True, text=True, check=True).stdout) / 1024)
    assert peaks[1] - peaks[0] < 60, peaks


def test_a_full_disk_is_a_message(write_jsonl, texts, tokenizer, mount_small_disk, tmp_path):
    root = mount_small_disk(tmp_path / "disk", "128k")
    with pytest.raises(DataError, match=r"cache_dir: the disk of .* is full"):
        tokenize(text_units(TextSource(write_jsonl(texts)), root), TextEncoder.of(tokenizer), root)
    assert not list((root / "tokens").rglob("*.tokens"))
