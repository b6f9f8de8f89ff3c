"""Several streams with shares: which rows come when, against each stream alone, over stops and kills."""

import json
from collections import Counter

import numpy as np
import pytest

from datamodules import DataError, MixedStreamingTextDataModule, TextSource
from tests.datamodules.recorder import fit
from tests.datamodules.streaming.test_stream_resume import STEPS, killed_twice, rows_of, with_data

NAMES = ("web", "code", "books")
WORDS = {"web": "word", "code": "shard", "books": "by"}
NUM_BOOKS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three streams of several files, which tell by a word which one they are."""
    root = tmp_path_factory.mktemp("streams")
    for name in NAMES:
        (root / name).mkdir()
        for number in range(2):
            texts = [f"Document {n}. " + f"{WORDS[name]} " * (3 + n % 40) for n in range(20 * number, 20 * number + 20)]
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (root / name / f"part-{number}.jsonl").write_text(lines)
    return root


def sources_of(folder, **of_books):
    weights = {"web": 4.0, "code": 1.0, "books": 1.0}
    sources = [{"path": str(folder / name), "weight": weight} for name, weight in weights.items()]
    sources[1]["weight_schedule"] = [[20 * 256, 1.0], [60 * 256, 5.0]]
    sources[2] |= of_books
    return sources


@pytest.fixture(scope="module")
def settings(folder, tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    data = {"tokenizer": tokenizer, "window_tokens": 1500}
    names = {"path": sources_of(folder), "cache": str(root / "cache"), "checkpoint": str(root / "a.ckpt")}
    return {**names, "data": data, "kind": "MixedStreamingTextDataModule", "max_steps": STEPS}


@pytest.fixture(scope="module")
def whole(settings):
    """A run that nothing interrupts."""
    return fit(**settings)


@pytest.fixture(scope="module")
def read(tokenizer):
    from transformers import PreTrainedTokenizerFast

    text = PreTrainedTokenizerFast.from_pretrained(tokenizer)

    def stream_of(row: list[int]) -> str:
        counts = Counter(text.decode(row).split())
        return max(NAMES, key=lambda name: counts[WORDS[name]])

    return stream_of


@pytest.mark.slow  # three processes read in each run
def test_rows_of_each_stream_are_those_of_it_alone_and_have_their_share(settings, whole, folder, read):
    rows = rows_of(whole[0].seen)
    names = np.array([read(row) for row in rows])
    samples = np.arange(len(rows))
    weights = np.stack([np.full(len(rows), 4.0), np.interp(samples, [80, 240], [1, 5]), np.ones(len(rows))], axis=1)
    expected = weights / weights.sum(axis=1, keepdims=True)
    for number, name in enumerate(NAMES):
        own = [row for row, its in zip(rows, names, strict=True) if its == name]
        alone, _, _ = fit(**settings | {"path": str(folder / name), "kind": "StreamingTextDataModule"})
        assert own == rows_of(alone.seen)[: len(own)] and len(own) > 20
        difference = np.cumsum((names == name) - expected[:, number])
        assert np.abs(difference).max() < 3  # rows, at any moment
    assert whole[2].val_source_names == list(NAMES)


@pytest.mark.slow  # three processes read in each run
@pytest.mark.parametrize(("step", "workers", "size"), [(17, 0, 4), (40, 2, 2)])
def test_it_goes_on_with_other_workers_and_batch_sizes_and_an_empty_cache(
    settings, whole, tmp_path, step, workers, size
):
    stream, checkpoint = rows_of(whole[0].seen), {"checkpoint": str(tmp_path / "a.ckpt")}
    first = with_data(settings, num_workers=workers, batch_size=size) | {"max_steps": step + 2, "save_at": step}
    before, _, _ = fit(**first | checkpoint)
    assert rows_of(before.seen) == stream[: (step + 2) * size]
    after, _, _ = fit(**settings | checkpoint | {"resume": True, "cache": str(tmp_path / "elsewhere")})
    assert rows_of(after.seen) == stream[step * size :][: (STEPS - step) * 4]


@pytest.mark.slow  # three processes read in each run
def test_a_stream_that_was_read_often_enough_leaves_its_share(settings, folder, tmp_path, read, tokenizer):
    from transformers import PreTrainedTokenizerFast

    text = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    often = settings | {"path": sources_of(folder, weight=9.0, max_epochs=2), "checkpoint": str(tmp_path / "a.ckpt")}
    recorder, _, data = fit(**often | {"save_at": 15})
    rows = rows_of(recorder.seen)
    is_book = [read(row) == "books" for row in rows]
    seen = Counter(
        part.split(".")[0]
        for row, its in zip(rows, is_book, strict=True) if its
        for part in text.decode(row).split("Document ")[1:]
    )  # fmt: skip
    assert set(seen.values()) == {2} and NUM_BOOKS / 2 < len(seen) < NUM_BOOKS  # the others are held out
    last = max(number for number, its in enumerate(is_book) if its)
    assert sum(is_book[: last + 1]) == data.state_dict()["ends"][2] and last < len(rows) - 40
    after, _, _ = fit(**often | {"resume": True})
    assert rows_of(after.seen) == rows[60:]
    code, other = ({**one, "max_epochs": 1} for one in sources_of(folder)[1:])
    with pytest.raises(DataError, match="of the run every source is used up"):
        fit(**often | {"path": [code, other]})


def opened(settings, folder, workers):
    data = MixedStreamingTextDataModule(
        [TextSource(str(folder / name), 1.0) for name in NAMES], seq_len=64, batch_size=4, val_share=0.1,
        cache_dir=settings["cache"], num_workers=workers, **settings["data"],
    )  # fmt: skip
    data.require_mixture("The test")
    data.prepare_data()
    data.setup("fit")
    return data


def rows_from(batches, count):
    return [row for _ in range(count) for row in next(batches)["input_ids"].tolist()]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_shares_that_are_moved_hold_from_the_next_batch_on(settings, folder, read, workers):
    data = opened(settings, folder, workers)
    batches = iter(data.train_dataloader())
    first = [read(row) for row in rows_from(batches, 9)]
    data.reweigh({"web": 0.0, "code": 1.0, "books": 0.0})
    assert data.state_dict()["shares"] == [(36, [0.0, 1.0, 0.0])]
    then = [read(row) for row in rows_from(batches, 9)]
    data.teardown("fit")
    assert set(Counter(first).values()) <= {11, 12, 13} and set(then) == {"code"}


@pytest.mark.slow
def test_a_run_goes_on_behind_shares_that_were_moved(settings, folder):
    data = opened(settings, folder, 0)
    batches = iter(data.train_dataloader())
    rows_from(batches, 9)
    data.reweigh({"web": 0.1, "code": 0.2, "books": 0.7})
    rows_from(batches, 5)
    state = json.loads(json.dumps(data.state_dict()))
    expected = rows_from(batches, 20)
    data.teardown("fit")
    again = opened(settings, folder, 2)
    again.load_state_dict(state)
    found = rows_from(iter(again.train_dataloader()), 20)
    again.teardown("fit")
    assert found == expected and again.shares() == {"web": 0.1, "code": 0.2, "books": 0.7}


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"weight": None, "weight_schedule": None}, "weight"), ({"max_epochs": 1.5}, r"must be whole, not 1\.5")],
)
def test_what_streams_cannot_be_mixed_by_is_said(folder, tokenizer, changed, words):
    sources = [TextSource(**one | changed) for one in sources_of(folder)]
    with pytest.raises(DataError, match=words):
        MixedStreamingTextDataModule(sources, tokenizer).check()


@pytest.mark.slow  # processes that are killed
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_two_kills(settings, tmp_path, workers, ranks):
    whole, _, _ = fit(**settings | {"max_steps": ranks * STEPS})
    more = {"devices": 2, "strategy": "ddp"} if ranks == 2 else {}
    apart = with_data(settings, num_workers=workers) | {"checkpoint": str(tmp_path / "b.ckpt")}
    assert rows_of(killed_twice(apart, tmp_path, **more)) == rows_of(whole.seen)
