"""The rows of a stream that was killed twice and moved to other workers and ranks are an uninterrupted one's."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datamodules import DataError
from tests.datamodules import recorder
from tests.datamodules.recorder import fit
from tests.datamodules.streaming.conftest import IN_A_FILE, NUM_FILES, document, write_parquet

STEPS = 60
TURN = 170  # rows, at most


@pytest.fixture
def settings(server, tokenizer, cache, tmp_path) -> dict:
    data = {"tokenizer": tokenizer, "window_tokens": 1500, "patience": 20.0}
    names = {"path": f"{server.url}/", "cache": str(cache), "checkpoint": str(tmp_path / "a.ckpt")}
    return {**names, "data": data, "kind": "StreamingTextDataModule", "max_steps": STEPS}


def with_data(settings: dict, **more) -> dict:
    return {**settings, "data": {**settings["data"], **more}}


def rows_of(batches) -> list[list[int]]:
    return [row for batch in batches for row in batch]


def test_it_resumes_at_any_step_with_other_workers_and_batch_sizes_and_an_empty_cache(settings, tmp_path):
    whole, _, data = fit(**settings)
    stream = rows_of(whole.seen)
    assert data.statistics["val"]["num_documents"] > 5
    for step, workers, size in ((17, 0, 4), (40, 2, 2)):
        first = with_data(settings, num_workers=workers, batch_size=size) | {"max_steps": step + 2, "save_at": step}
        before, _, _ = fit(**first)
        assert rows_of(before.seen) == stream[: (step + 2) * size]
        after, _, _ = fit(**settings | {"resume": True, "cache": str(tmp_path / f"elsewhere{step}")})
        assert rows_of(after.seen) == stream[step * size :][: (STEPS - step) * 4]


def test_each_document_comes_once_a_turn_and_in_another_order_the_next(settings, tokenizer):
    from transformers import PreTrainedTokenizerFast

    recorded, _, data = fit(**settings)
    text = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    val = rows_of([recorded.validated])
    held_out = {part.split(".")[0] for row in recorded.validated for part in text.decode(row).split("Document ")[1:]}
    assert val and held_out
    windows, seen, turn = data._windows, [], []
    for row in rows_of(recorded.seen):
        turn += [part.split(".")[0] for part in text.decode(row).split("Document ")[1:]]
        if len(turn) == NUM_FILES * IN_A_FILE - len(held_out):
            seen.append(turn)
            turn = []
    assert windows.at(data.position).begin.turn >= 1 and len(seen) >= 1
    expected = {str(number) for number in range(NUM_FILES * IN_A_FILE)} - held_out
    assert set(seen[0]) == expected and len(seen[0]) == len(expected)
    assert not set(turn) & held_out and turn != seen[0][: len(turn)]
    assert document(3).startswith("Document 3.")


def killed_twice(settings: dict, tmp_path: Path, **more) -> list[list[list[int]]]:
    """The batches of each step, of all ranks, in a run of processes that are killed twice at random moments."""
    log = tmp_path / "log"
    command = {**settings, **more, "log": str(log), "resume": True}
    rng = random.Random(1)
    ends = [rng.randint(7, 25), rng.randint(26, 50), None]
    for end in ends:
        process = start(str(tmp_path / "out"), command)
        if end is None:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
        else:
            wait_for_step(log, end, process)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return logged(log, more.get("devices", 1))


def start(name: str, settings: dict) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, recorder.__file__, name, json.dumps(settings)], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_step(log: Path, step: int, process: subprocess.Popen) -> None:
    path = Path(f"{log}.0")
    while not path.exists() or len(path.read_text().splitlines()) < step:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def logged(log: Path, num_ranks: int) -> list[list[list[int]]]:
    ranks = []
    for rank in range(num_ranks):
        steps: dict[int, list] = {}
        for line in Path(f"{log}.{rank}").read_text().splitlines():
            try:
                step, rows = json.loads(line)
            except ValueError:  # the kill came while it was written
                continue
            assert steps.setdefault(step, rows) == rows  # what is done again is the same
        ranks.append([steps[step] for step in range(STEPS)])
    return [rows_of(batches) for batches in zip(*ranks, strict=True)]


@pytest.mark.slow  # processes that are killed
@pytest.mark.parametrize("workers", [0, 2])
def test_two_kills_on_one_rank(settings, tmp_path, workers):
    whole, _, _ = fit(**settings)
    (tmp_path / "kills").mkdir()
    assert rows_of(killed_twice(with_data(settings, num_workers=workers), tmp_path / "kills")) == rows_of(whole.seen)
    assert_small(Path(settings["cache"]), 3 + workers // 2)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_two_kills_on_two_ranks(settings, tmp_path, workers):
    whole, _, _ = fit(**settings | {"max_steps": 2 * STEPS})
    (tmp_path / "kills").mkdir()
    two = killed_twice(
        with_data(settings, num_workers=workers), tmp_path / "kills", devices=2, strategy="ddp", max_steps=STEPS
    )
    assert rows_of(two) == rows_of(whole.seen)
    # Batches of 8 rows, (2 * workers + 2) of them on their way. Where these are more than a window of some 25 rows,
    # they lie in that many windows more, and in parts of one at either end.
    windows = (2 * workers + 2) * 8 // 25
    assert_small(Path(settings["cache"]), 3 + (windows + 1 if windows else 0))


def assert_small(cache: Path, most: int) -> None:
    """Whatever was killed: a few windows, and no copies of files but those of the process that was killed last."""
    assert len(list(cache.glob("streams/*/[0-9]*/window.json"))) <= most
    assert len(list(cache.glob("streams/copies-*/train/*"))) <= 2


def test_a_file_that_changed_since_the_checkpoint_is_named(settings, shards):
    fit(**settings | {"max_steps": 5, "save_at": 4})
    write_parquet(shards / "part-3.parquet", ["Another text."])
    with pytest.raises(DataError, match=r"part-3\.parquet has changed: size, ETag or time since the checkpoint"):
        fit(**settings | {"resume": True})


def test_a_file_that_came_since_the_checkpoint_is_named(settings, shards):
    fit(**settings | {"max_steps": 5, "save_at": 4})
    (shards / "part-9.txt").write_text("More.")
    with pytest.raises(DataError, match=r"part-9\.txt is new since the checkpoint"):
        fit(**settings | {"resume": True})


def test_other_bytes_of_the_same_length_are_noticed_without_marks(settings, server, shards, tmp_path):
    """A server that tells lengths alone: the file that the run stopped in is compared by what was read of it."""
    server.marks = False
    settings = with_data(settings, shuffle=False, window_tokens=500)
    _, _, data = fit(**settings | {"max_steps": 2, "save_at": 2})
    number = next(iter(data.state_dict()["window"]["digests"]))
    path = sorted(shards.iterdir())[number]
    path.write_bytes(path.read_bytes().replace(b"word", b"WORD"))
    with pytest.raises(DataError, match=r"its length is the same and its content is not"):
        fit(**settings | {"resume": True, "cache": str(tmp_path / "empty")})


def test_other_settings_are_refused(settings):
    fit(**settings | {"max_steps": 5, "save_at": 4})
    with pytest.raises(DataError, match="not those of the checkpoint"):
        fit(**with_data(settings, window_tokens=1501) | {"resume": True})
