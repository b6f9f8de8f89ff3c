"""A server that hangs, fails, cuts files or changes them: what comes is right, or the run stops and says why."""

import gzip
import time
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.encoding.texts import TextEncoder
from datamodules.encoding.tokenizer import load_tokenizer
from datamodules.errors import DataError
from datamodules.sources.units import Unit
from datamodules.streaming import remote
from datamodules.streaming.builder import Builder
from datamodules.streaming.files import files_of
from datamodules.streaming.patience import Patience
from datamodules.streaming.plan import Cursor, Plan
from datamodules.streaming.remote import digest_of, fetch, find_remote
from datamodules.streaming.window import Window
from tests.datamodules.streaming.conftest import write_parquet
from tests.datamodules.streaming.file_server import cuts, fails, hangs

NAME = "part-0.jsonl"


def fetched(server, folder: Path, seconds: float = 6.0, query: str = "") -> Path:
    patience = Patience(seconds)
    (unit,) = find_remote(f"{server.url}/{NAME}{query}", patience)
    fetch(unit, folder / "copy", patience)
    return folder / "copy"


@pytest.mark.parametrize("fault", [hangs(1), fails(500, 2), fails(429, 1), cuts(2)], ids=["hang", "500", "429", "cut"])
def test_what_passes_is_waited_for(server, shards, tmp_path, fault, capfd):
    server.fault = fault
    assert digest_of(fetched(server, tmp_path)) == digest_of(shards / NAME)
    assert "once more in" in capfd.readouterr().err and server.asked[NAME] >= 2


@pytest.mark.parametrize(
    ("fault", "reason"), [(hangs(99), "no reply within"), (fails(503, 99), "HTTP 503"), (cuts(99), "Not enough data")]
)
def test_what_does_not_pass_ends_in_time_with_the_reason(server, tmp_path, fault, reason):
    server.fault = fault
    begun = time.monotonic()
    with pytest.raises(
        DataError, match=rf"{NAME} could not be read in \d+ tries over 1.5 s, at last because of: .*{reason}"
    ):
        fetched(server, tmp_path, seconds=1.5)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_final(server, tmp_path, status, capfd):
    server.fault = fails(status, 99)
    with pytest.raises(DataError, match=f"HTTP {status}"):
        fetched(server, tmp_path)
    assert "once more" not in capfd.readouterr().err


def test_a_missing_file_and_a_folder_without_text_are_said_at_once(server, tmp_path):
    with pytest.raises(DataError, match=r"path: .*/none\.jsonl: HTTP 404"):
        find_remote(f"{server.url}/none.jsonl", Patience(5))
    (server.folder / "pictures").mkdir()
    (server.folder / "pictures" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"pictures/ holds none of \.txt.*found 1 files, such as .*a\.png"):
        find_remote(f"{server.url}/pictures/", Patience(5))
    with pytest.raises(DataError, match="Protocol not known: nothing"):
        find_remote("nothing://bucket/a.jsonl", Patience(5))
    with pytest.raises(DataError, match="pip install gcsfs"):
        find_remote("gs://bucket/a.jsonl", Patience(5))


def test_a_server_that_cannot_begin_in_the_middle(server, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK_BYTES", 1000)
    server.ranges = False
    assert digest_of(fetched(server, tmp_path)) == digest_of(shards / NAME)
    server.ranges = True
    server.asked.clear()
    assert digest_of(fetched(server, tmp_path)) == digest_of(shards / NAME)
    assert server.asked[NAME] == -(-(shards / NAME).stat().st_size // 1000)


def test_a_file_that_changes_while_it_is_fetched(server, shards, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK_BYTES", 1000)

    def change(handler, name, asked):
        if asked == 3:
            path = shards / name
            path.write_bytes(path.read_bytes().replace(b"word", b"WORD"))
        return False

    server.fault = change
    with pytest.raises(DataError, match=rf"{NAME} has changed since this stream was begun \(its ETag or time"):
        fetched(server, tmp_path)


def test_secrets_of_a_url_are_sent_and_not_said(server, tmp_path, capfd):
    server.fault = fails(500, 99)
    with pytest.raises(DataError) as caught:
        fetched(server, tmp_path, seconds=1, query="?token=Secret-Of-The-Url-1")
    assert any("Secret-Of-The-Url-1" in path for path in server.paths)
    assert "Secret-Of-The-Url-1" not in str(caught.value) + "".join(capfd.readouterr())


def plan_of(path: str, tokenizer: str, cache: Path, **more) -> Plan:
    made = TextEncoder.of(load_tokenizer(tokenizer))
    settings = {
        "val_units": (), "val_share": 0.0, "seq_len": 64, "room": (0, 0), "window_tokens": 1500, "shuffle": False,
        "seed": 0, "on_bad_record": "stop", "patience": 3.0,
    }  # fmt: skip
    units = tuple(files_of([path], "text", None, "train", 3.0, cache))
    return Plan(units=units, tokenizer=made.tokenizer.to_str(), encoder=made.settings(), **{**settings, **more})


@pytest.fixture
def builder_of(server, tokenizer, cache):
    def make(name: str, **more) -> Builder:
        return Builder(plan_of(f"{server.url}/{name}", tokenizer, cache, **more), cache, cache / "copies-test")

    return make


@pytest.mark.parametrize("name", ["part-1.jsonl.gz", "part-2.jsonl.zst", "part-3.parquet"])
def test_a_file_that_was_cut_before_it_was_served_is_named_by_its_url(server, shards, builder_of, name):
    data = (shards / name).read_bytes()
    (shards / name).write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DataError, match=rf"http://127\.0\.0\.1:\d+/{name} is (damaged|not a readable)") as caught:
        builder_of(name).window(0, Cursor(), {})
    assert "copies-test" not in str(caught.value)


def test_bad_records_are_named_by_the_url_and_counted(server, shards, builder_of):
    with (shards / NAME).open("a") as file:
        file.write('{"words": "no text"}\n[1]\n')
    with pytest.raises(DataError, match=rf"/{NAME}:25: no column 'text'; it has: words"):
        builder_of(NAME, window_tokens=10**6).window(0, Cursor(), {})
    builder = builder_of(NAME, window_tokens=10**6, on_bad_record="skip")
    builder.window(0, Cursor(), {})
    facts = Window(builder.root / builder.plan.key() / "0").facts()
    assert facts["num_bad"] == 2 and facts["first_bad"].startswith(f"{server.url}/{NAME}:25")


def test_a_window_ends_where_the_next_one_begins_wherever_it_is_made(server, builder_of, tmp_path):
    """By a process that goes on, and by one that begins there."""
    builder, place, ends = builder_of("*"), Cursor(), []
    for number in range(3):
        builder.window(number, place, {})
        place = Window(builder.root / builder.plan.key() / str(number)).facts()["end"]
        ends.append(place)
    other = Builder(builder.plan, tmp_path / "other", tmp_path / "copies")
    other.window(2, ends[1], {})
    paths = [root / builder.plan.key() / "2" for root in (builder.root, other.root)]
    for name in ("tokens.tokens", "spans", "rows"):
        assert len({(path / name).read_bytes() for path in paths}) == 1
    assert server.asked["part-0.jsonl"] == 1 and ends[1].skip and ends[2] == Cursor(turn=1)


def test_a_damaged_gzip_stops_behind_what_could_be_read(server, shards, builder_of):
    """What lies before the damage is not served twice, nor is the rest passed over."""
    text = gzip.decompress((shards / "part-1.jsonl.gz").read_bytes())
    (shards / "part-1.jsonl.gz").write_bytes(gzip.compress(text)[:-4] + b"\0\0\0\0")
    with pytest.raises(DataError, match=r"part-1\.jsonl\.gz is damaged"):
        builder_of("part-1.jsonl.gz", window_tokens=10**6).window(0, Cursor(), {})


def test_a_hub_data_set_goes_on_in_the_middle_of_a_shard(tmp_path, tokenizer, cache):
    """The hub cannot be reached here; `datasets` reads a local repository by the same calls."""
    for shard in range(2):
        write_parquet(tmp_path / "set" / f"train-{shard:05d}-of-00002.parquet", [f"{shard} {i}" for i in range(40)])
    units = tuple(Unit(str(tmp_path / "set"), "hub", "set@", shard, shard + 1) for shard in range(2))
    local = plan_of(str(tmp_path / "set" / "*"), tokenizer, cache, window_tokens=200, shuffle=True)
    plan = replace(local, units=units)
    first = Builder(plan, cache, cache / "copies-test")
    first.window(0, Cursor(), {})
    place = Window(cache / plan.key() / "0").facts()["end"]
    assert 0 < place.skip < 40
    first.window(1, place, {})
    other = Builder(plan, tmp_path / "other", tmp_path / "copies")
    other.window(1, place, {})
    both = [(root / plan.key() / "1" / "tokens.tokens").read_bytes() for root in (cache, tmp_path / "other")]
    assert both[0] == both[1]
