"""Which files of a folder are taken, that each of their documents is trained on once, and how a run ends."""

import json
import os
import re
import signal
from pathlib import Path
from threading import Thread

import pytest
from transformers import PreTrainedTokenizerFast

from callbacks.contract import Waits, offered
from datamodules import DataError, WatchedTextDataModule
from datamodules.filters import ExactDuplicates, Words
from datamodules.streaming.ledger import Ledger, NothingMoreError
from datamodules.streaming.watch import STOP, WatchedFolder
from llm_lightning_safety.seals import read_json
from tests.datamodules.recorder import fit
from tests.datamodules.streaming.conftest import document
from tests.datamodules.streaming.test_stream_resume import start, wait_for_step


@pytest.fixture
def inbox(tmp_path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


def put(inbox: Path, name: str, numbers) -> None:
    lines = "".join(json.dumps({"text": document(number)}) + "\n" for number in numbers)
    new = inbox / f".{name}.new"
    new.parent.mkdir(parents=True, exist_ok=True)
    new.write_text(lines)
    (inbox / name).parent.mkdir(parents=True, exist_ok=True)
    new.replace(inbox / name)


class Lines(list):
    def __call__(self, line):
        self.append(line)

    def __contains__(self, part):
        return any(part in line for line in self)


def watching(inbox, settle=0.0, **settings):
    said = Lines()
    return WatchedFolder(inbox, settle, "text", "skip", said, **settings), said


def taken(found):
    return {one["name"]: one for one in found}


def names(found):
    return [one["name"] for one in found]


def test_a_file_that_is_written_is_left_until_it_stays_the_same(inbox, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("datamodules.streaming.watch.time.monotonic", lambda: now[0])
    folder, _ = watching(inbox, settle=5)
    put(inbox, "b.jsonl", [1])
    assert folder.look({}) == [] and folder.is_settling
    now[0] = 4
    put(inbox, "a/c.jsonl", [2])
    with (inbox / "b.jsonl").open("a") as file:
        file.write(json.dumps({"text": "More."}) + "\n")
    assert folder.look({}) == []
    now[0] = 8.9
    assert folder.look({}) == []
    now[0] = 9
    found = folder.look({})
    assert names(found) == ["a/c.jsonl", "b.jsonl"] and not folder.is_settling
    assert folder.look(taken(found)) == []


def test_what_is_hidden_or_of_no_known_format_or_empty_is_not_looked_at(inbox):
    folder, said = watching(inbox)
    for name in (".hidden.jsonl", "a.jsonl.tmp", ".tmp/b.jsonl", STOP):
        (inbox / name).parent.mkdir(exist_ok=True)
        (inbox / name).write_text(json.dumps({"text": "x"}))
    (inbox / "empty.txt").touch()
    assert folder.look({}) == [] and not said and not folder.is_settling and folder.stop_asked
    (inbox / "empty.txt").write_text("No longer.")
    assert names(folder.look({})) == ["empty.txt"]


def test_what_changed_is_gone_or_is_a_copy_is_said_once_and_not_taken_again(inbox):
    folder, said = watching(inbox)
    for name in "abc":
        put(inbox, f"{name}.jsonl", [ord(name)])
    found = taken(folder.look({}))
    put(inbox, "copy.jsonl", [ord("a")])
    (inbox / "b.jsonl").unlink()
    with (inbox / "c.jsonl").open("a") as file:
        file.write("\n")
    for _ in range(2):
        assert folder.look(found) == []
    assert len(said) == 3 and "copy.jsonl is left out: it is a copy of a.jsonl" in said
    assert "Gone since they were taken: b.jsonl" in said and "c.jsonl has changed since it was taken" in said


def test_what_cannot_be_read_is_taken_once_it_can(inbox):
    folder, said = watching(inbox)
    (inbox / "a.parquet").write_text("no table")
    assert folder.look({}) == folder.look({}) == []
    assert len(said) == 1 and "a.parquet is left out until it changes" in said
    put(inbox, "b.jsonl", [1])
    assert names(folder.look({})) == ["b.jsonl"]


def test_a_ledger_keeps_its_order_and_a_checkpoint_of_another_one_counts(inbox, tmp_path):
    file = tmp_path / "watched.json"
    first = Ledger(file, watching(inbox)[0], idle=0.0)
    first.open()
    put(inbox, "b.jsonl", [1])
    assert first.has(0)
    put(inbox, "a.jsonl", [2])
    assert first.has(1)
    with pytest.raises(NothingMoreError, match="no new file came in 0 s"):
        first.wait_for(2)
    reader = Ledger(file, None, None)
    reader.open()
    assert [names(files) for files in reader.deliveries] == [["b.jsonl"], ["a.jsonl"]]
    with pytest.raises(NothingMoreError, match="no new file"):
        reader.wait_for(2)
    again = Ledger(file, watching(inbox)[0], idle=0.0)
    again.open(first.deliveries[:1])
    assert again.id == first.id and again.deliveries == first.deliveries and again.has(1) and not again.has(2)
    other = Ledger(file, watching(inbox)[0], idle=0.0)
    other.open(first.deliveries[1:])
    assert other.id != first.id and other.deliveries == first.deliveries[1:]
    file.write_text("torn")
    lost = Ledger(file, watching(inbox)[0], idle=0.0)
    lost.open(first.deliveries[:1])
    assert lost.deliveries == first.deliveries[:1] and lost.has(1)


def test_a_file_that_came_before_stop_is_taken(inbox):
    class Slow(WatchedFolder):
        """In which both come when the first look is over."""

        def look(self, taken):
            found = super().look(taken)
            if not (inbox / STOP).exists():
                put(inbox, "a.jsonl", [1])
                (inbox / STOP).touch()
            return found

    ledger = Ledger(None, Slow(inbox, 0.0, "text", "skip", print), None)
    ledger.wait_for(0)
    assert names(ledger.deliveries[0]) == ["a.jsonl"]
    with pytest.raises(NothingMoreError, match="STOP is there"):
        ledger.wait_for(1)


@pytest.fixture
def settings(inbox, tokenizer, cache, tmp_path) -> dict:
    data = {"tokenizer": tokenizer, "window_tokens": 1500, "settle": 0.0, "idle": 0.0, "val_share": None}
    names = {"path": str(inbox), "cache": str(cache), "checkpoint": str(tmp_path / "a.ckpt")}
    run = {"default_root_dir": str(tmp_path / "run"), "accumulate_grad_batches": 2}
    return {**names, **run, "data": data, "kind": "WatchedTextDataModule"}


def documents(batches, tokenizer) -> list[int]:
    """The documents that batches hold, as one row goes on in the next where a long one was cut."""
    text = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    return [int(n) for batch in batches for row in batch for n in re.findall(r"Document (\d+)\.", text.decode(row))]


def test_each_document_is_trained_on_once_over_additions_and_resumptions(settings, inbox, tokenizer, tmp_path):
    put(inbox, "b.jsonl", range(40))
    first, trainer, data = fit(**settings)
    assert sorted(documents(first.seen, tokenizer)) == list(range(40))
    assert offered(data, Waits) is data and trainer.should_stop and len(first.seen) % 2 == 0 and data.rests()
    # As if it had been killed behind its third step: what came later is as it was taken then.
    again = {**settings, "default_root_dir": str(tmp_path / "killed")}
    put(inbox, "a.jsonl", range(40, 60))
    cut, _, _ = fit(**again | {"max_steps": 5, "save_at": 3})
    put(inbox, "c.jsonl", range(60, 90))
    resumed, _, _ = fit(**again | {"resume": True, "cache": str(tmp_path / "elsewhere"), "log": str(tmp_path / "log")})
    assert resumed.seen[: len(cut.seen) - 6] == cut.seen[6:]
    assert sorted(documents(cut.seen[:6] + resumed.seen, tokenizer)) == list(range(90))
    (inbox / "b.jsonl").unlink()
    (tmp_path / "killed" / "watched.json").unlink()  # the checkpoint has it too
    put(inbox, "d.jsonl", range(90, 95))
    last, _, _ = fit(**again | {"resume": True})
    assert sorted(documents(last.seen, tokenizer)) == list(range(90, 95))  # saved before it waited
    ledger = read_json(tmp_path / "killed" / "watched.json")
    assert [names(files) for files in ledger["deliveries"]] == [["a.jsonl", "b.jsonl"], ["c.jsonl"], ["d.jsonl"]]


def test_filters_leave_out_of_each_delivery_what_they_are_to(settings, inbox, tokenizer):
    kept = [number for number in range(60) if 20 <= len(document(number).split()) <= 45]
    settings["data"]["filters"] = [Words(min=20, max=45)]
    put(inbox, "a.jsonl", set(range(30)) - set(kept))
    put(inbox, "b.jsonl", range(30))
    first, _, _ = fit(**settings | {"save_at": 2})
    found = documents(first.seen, tokenizer)
    assert sorted(found) == [number for number in kept if number < 30] and len(found) > 5
    put(inbox, "c.jsonl", set(range(30, 60)) - set(kept))  # nothing of this delivery is left
    put(inbox, "d.jsonl", kept[len(found) :])
    second, _, _ = fit(**settings | {"resume": True})
    assert sorted(documents(first.seen[:4] + second.seen, tokenizer)) == kept
    settings["data"]["filters"] = [ExactDuplicates()]
    with pytest.raises(DataError, match="ExactDuplicates compares all documents"):
        fit(**settings)


def test_files_that_come_while_it_waits_and_a_stop(settings, inbox, tokenizer, monkeypatch):
    put(inbox, "a.jsonl", range(9))
    settings["data"]["idle"] = None
    waited = Ledger._wait_for
    came = iter([lambda: put(inbox, "b.jsonl", range(9, 12)), (inbox / STOP).touch])

    def wait_for(ledger, number):
        Thread(target=next(came)).start()
        waited(ledger, number)

    monkeypatch.setattr(Ledger, "_wait_for", wait_for)
    recorded, _, _ = fit(**settings)
    assert documents(recorded.seen[:4], tokenizer)[:1] and sorted(documents(recorded.seen, tokenizer)) == list(
        range(12)
    )


def test_a_taken_file_that_is_wanted_again_and_gone_is_named(settings, inbox, tmp_path):
    put(inbox, "a.jsonl", range(40))
    fit(**settings | {"max_steps": 3, "save_at": 2})
    (inbox / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"a\.jsonl is gone since this stream was begun"):
        fit(**settings | {"resume": True, "cache": str(tmp_path / "empty")})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"path": "nowhere"}, "must be one local folder"),
        ({"settle": -1.0}, "settle: it must be at least 0"),
        ({"tokenizer": None}, "tokenizer: a stream is read once"),
    ],
)
def test_settings_that_cannot_work(inbox, wrong, words):
    with pytest.raises(DataError, match=words):
        WatchedTextDataModule(**{"path": str(inbox), "tokenizer": "t", "seq_len": 64, **wrong}).check_settings()


def test_a_folder_that_the_run_itself_writes_to(settings, inbox):
    with pytest.raises(DataError, match="which the run itself writes to"):
        fit(**settings | {"default_root_dir": str(inbox / "run")})
    with pytest.raises(DataError, match="which the run itself writes to"):
        fit(**settings | {"cache": str(inbox / "cache")})


def test_a_preview_shows_what_is_there(inbox, tokenizer, cache):
    def preview():
        data = WatchedTextDataModule(str(inbox), tokenizer, seq_len=64, cache_dir=str(cache))
        data.setup("fit")
        return "\n".join(data.preview(2))

    with pytest.raises(DataError, match="nothing in"):
        preview()
    put(inbox, "a.jsonl", [3])
    assert "Document" in preview()


@pytest.mark.slow  # processes that are killed
@pytest.mark.parametrize("devices", [1, 2])
def test_three_additions_and_two_kills(settings, inbox, tokenizer, tmp_path, devices):
    log = tmp_path / "log"
    settings["data"] |= {"settle": 0.3, "idle": None, "batch_size": 4 // devices}
    command = {**settings, "log": str(log), "resume": True, "devices": devices}
    command |= {"strategy": "ddp"} if devices > 1 else {}
    put(inbox, "a.jsonl", range(60))
    for end, numbers in ((5, range(60, 100)), (14, range(100, 130)), (None, None)):
        process = start(str(tmp_path / "out"), command)
        if end is None:
            (inbox / STOP).touch()
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
        else:
            wait_for_step(log, end, process)
            put(inbox, f"{end}.jsonl", numbers)
            if end == 14:
                wait_for_step(log, 24, process)  # what came while it trained is begun, or it waits for it
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    rows = []
    for rank in range(devices):
        steps: dict[int, list] = {}
        for line in Path(f"{log}.{rank}").read_text().splitlines():
            try:
                step, batch = json.loads(line)
            except ValueError:  # the kill came while it was written
                continue
            steps.setdefault(step, []).append(batch)
        # A step that was done again is the same: two micro-batches each time, whole but where the kill came.
        for batches in steps.values():
            assert all(batch in batches[-2:] for batch in batches)
        rows += [batch for step in sorted(steps) for batch in steps[step][-2:]]
    assert sorted(documents(rows, tokenizer)) == list(range(130))
