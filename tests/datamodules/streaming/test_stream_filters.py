"""Filters on a stream: what trains is what they leave of the files, from any place on."""

import json

import pytest

from datamodules import DataError, StreamingTextDataModule, TextDataModule
from datamodules.encoding.texts import TextEncoder
from datamodules.encoding.tokenizer import load_tokenizer
from datamodules.filters import ExactDuplicates, Phrases, Words
from datamodules.filters.filter import spec_of
from datamodules.streaming.builder import Builder
from datamodules.streaming.files import files_of
from datamodules.streaming.plan import Cursor, Plan
from datamodules.streaming.window import Window
from tests.datamodules.streaming.test_stream_rows import opened, rows_of  # noqa: F401 (a fixture)

FILTERS = [Words(min=20, max=45), Phrases(phrases=("of of of",))]


def test_what_trains_and_what_is_held_out_is_what_they_leave(shards, opened, capsys):  # noqa: F811
    """As the same filters leave it of the file when it is read whole; what was asked for by name stays."""
    path = str(shards / "part-0.jsonl")
    here = opened(TextDataModule, path, val_share=0, filters=FILTERS)
    count = here.num_rows("train")
    expected = rows_of(here.in_order("train"), count)
    stream = opened(StreamingTextDataModule, path, val_path=path, shuffle=False, filters=FILTERS)
    assert rows_of(stream.train_dataloader(), count) == expected and count > 2
    assert stream.statistics["val"]["num_documents"] == 24
    plain = opened(StreamingTextDataModule, path, val_path=path, shuffle=False)
    assert plain.rows_key() != stream.rows_key()
    assert rows_of(plain.train_dataloader(), count) != expected


def test_a_window_begins_anywhere_and_says_what_was_taken(shards, tokenizer, tmp_path):
    made = TextEncoder.of(load_tokenizer(tokenizer))
    units = tuple(files_of([str(shards / "*.jsonl*")], "text", None, "train", 3.0, tmp_path))
    plan = Plan(
        units, (), 0.2, made.tokenizer.to_str(), made.settings(), 64, (0, 0), 600, True, 0, "stop", 3.0,
        filters=tuple(spec_of(each) for each in FILTERS),
    )  # fmt: skip
    plan = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    builder, place, ends = Builder(plan, tmp_path / "one", tmp_path / "copies-1"), Cursor(), []
    read, taken = 0, [0, 0]
    for number in range(3):
        builder.window(number, place, {})
        facts = Window(builder.root / plan.key() / str(number)).facts()
        place = facts["end"]
        ends.append(place)
        read += facts["filtered"]["documents"]
        taken = [sum(pair) for pair in zip(taken, (s["documents"] for s in facts["filtered"]["stages"]), strict=True)]
    assert read > sum(taken) and all(taken)
    other = Builder(plan, tmp_path / "two", tmp_path / "copies-2")
    other.window(2, ends[1], {})
    paths = [root / plan.key() / "2" for root in (builder.root, other.root)]
    for name in ("tokens.tokens", "spans", "rows"):
        assert len({(path / name).read_bytes() for path in paths}) == 1


def test_what_compares_all_documents_is_refused(shards, opened):  # noqa: F811
    with pytest.raises(DataError, match="filters: ExactDuplicates compares all documents, and a stream is read once"):
        opened(StreamingTextDataModule, str(shards / "part-0.jsonl"), filters=[ExactDuplicates()])
