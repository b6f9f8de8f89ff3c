"""Prompts of several sources: their shares, their order, and where it is gone on with."""

import json
from collections import Counter

import numpy as np
import pytest

from datamodules import DataError, PromptDataModule, RecordSource
from datamodules.cache import key_of
from datamodules.encoding.tokenizer import train


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("plain")
    train(iter(["what is 1 plus 2? three"] * 9), vocab_size=300).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def write(tmp_path):
    def records(name: str, numbers: range) -> str:
        path = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({"prompt": "what " * (1 + i % 3) + f"is {i}", "i": i}) + "\n" for i in numbers]
        path.write_text("".join(lines))
        return str(path)

    return records


@pytest.fixture
def build(tmp_path, tokenizer):
    def ready(path=None, ranks=None, **options) -> PromptDataModule:
        options = {"tokenizer": tokenizer, "cache_dir": str(tmp_path / "cache"), "val_share": 0.0} | options
        data = PromptDataModule(path, **options)
        if ranks is not None:
            data.data_ranks = lambda: dict(zip(("rank", "num_ranks"), ranks, strict=True))
        data.check()
        data.prepare_data()
        data.setup("fit")
        return data

    return ready


def served(data: PromptDataModule, count: int) -> list[list[int]]:
    return [batch["columns"]["i"] for _, batch in zip(range(count), data.train_dataloader(), strict=False)]


# What the first version served, with val_share=0.2 and batch_size=4.
ONE_PATH = [[7, 10, 4, 16], [2, 31, 23, 14], [28, 4, 25, 7], [1, 39, 30, 1], [35, 32, 32, 35], [24, 9, 39, 30],
            [12, 0, 15, 3], [28, 25, 13, 19]]  # fmt: skip
HELD_OUT = [20, 22, 26, 27, 33, 36, 37, 38]
TWO_PATHS = [[23, 14, 5, 29], [19, 10, 25, 40], [34, 43, 46, 31], [11, 5, 29, 44], [9, 21, 24, 3], [54, 45, 54, 48],
             [28, 19, 7, 16], [11, 8, 17, 8], [1, 42, 39, 48], [10, 25, 13, 4]]  # fmt: skip


@pytest.mark.parametrize("weight", [None, 2.0])
def test_one_path_is_split_and_ordered_as_ever(build, write, weight):
    path = write("a", range(40))
    options = {"val_share": 0.2, "batch_size": 4}
    data = build(sources=[RecordSource(path, weight)], **options) if weight else build(path, **options)
    held_out = [number for batch in data.val_dataloader() for number in batch["numbers"]]
    assert held_out == HELD_OUT
    assert served(data, 8) == ONE_PATH
    if weight is None:
        rows = key_of(0, data.describe()["files"], 32)
        assert data.state_dict() == {"position": 32, "rows": rows, "per_batch": 4}


def test_two_paths_are_read_as_one_as_ever(build, write):
    paths = [write("a", range(40)), write("b", range(40, 56))]
    options = {"val_share": 0.2, "batch_size": 4, "seed": 3}
    listed, sources = build(paths, **options), build(sources=[RecordSource(path) for path in paths], **options)
    assert served(listed, 10) == served(sources, 10) == TWO_PATHS
    rows = key_of(3, listed.describe()["files"], 45)
    assert listed.state_dict()["rows"] == sources.state_dict()["rows"] == rows


def test_equal_weights_of_equal_sources_serve_every_prompt_once_an_epoch_as_without_weights(build, write):
    paths = [write("a", range(24)), write("b", range(24, 48))]
    weighted = build(sources=[RecordSource(path, 1) for path in paths], batch_size=4)
    assert served(weighted, 12) == served(build(paths, batch_size=4), 12)


def test_weights_are_shares_of_every_epoch(build, write):
    sources = [RecordSource(write("a", range(240)), 1), RecordSource(write("b", range(240, 256)), 3)]
    data = build(sources=sources, batch_size=8)
    epochs = [np.ravel(served(data, 32)) for _ in range(3)]
    assert data.position == 3 * 256
    for loaded in epochs:
        assert (loaded >= 240).sum() == 192 and set(Counter(loaded[loaded >= 240].tolist()).values()) == {12}
    large = np.concatenate(epochs)
    assert set(Counter(large[large < 240].tolist()).values()) == {1}  # it is walked through over the epochs


def test_a_mixture_goes_on_in_the_middle_and_on_other_ranks(build, write):
    paths = [write("a", range(90)), write("b", range(90, 100))]

    def mixture(batch_size: int, ranks=None, weights=(1, 1)) -> PromptDataModule:
        sources = [RecordSource(path, weight) for path, weight in zip(paths, weights, strict=True)]
        return build(sources=sources, batch_size=batch_size, ranks=ranks)

    whole = served(mixture(8), 12)
    assert len(np.unique(np.concatenate(whole))) < 96  # the small source has come round by then
    stopped = mixture(8)
    assert served(stopped, 5) == whole[:5]
    state = stopped.state_dict()
    resumed = mixture(8)
    resumed.load_state_dict(state)
    assert served(resumed, 7) == whole[5:]
    ranks = [mixture(4, (rank, 2)) for rank in range(2)]
    for data in ranks:
        data.load_state_dict(state)
    assert [[*a, *b] for a, b in zip(*(served(data, 7) for data in ranks), strict=True)] == whole[5:]
    with pytest.raises(DataError, match="not those of the checkpoint"):
        mixture(8, weights=(1, 2)).load_state_dict(state)


def test_what_is_held_out_of_a_mixture_is_never_trained(build, write):
    sources = [RecordSource(write("a", range(90)), 1), RecordSource(write("b", range(90, 100)), 1)]
    data = build(sources=sources, batch_size=4, val_share=0.2)
    held_out = {i for batch in data.val_dataloader() for i in batch["columns"]["i"]}
    assert len(held_out) == 20
    assert held_out.isdisjoint(i for batch in served(data, 40) for i in batch)


def test_mistakes_in_sources(build, write):
    path = write("a", range(9))
    for options, message in (
        ({"path": path, "sources": [RecordSource(path)]}, r"path and sources: give one of them \(both are given\)"),
        ({}, r"path and sources: give one of them \(neither is given\)"),
        ({"sources": [RecordSource(path)], "columns": {"prompt": "x"}}, "columns: with sources, name them in the sour"),
        ({"sources": [RecordSource(path)], "column": "x"}, "columns: with sources, name them in the source"),
        ({"sources": [RecordSource(path, 1), RecordSource(path)]}, "give a weight to all of them or to none"),
        ({"sources": [RecordSource(path, 1), RecordSource(write("b", range(9, 10)), 0)]}, "a weight must be above 0"),
    ):
        with pytest.raises(DataError, match=message):
            build(**options)


def test_a_weighted_source_of_which_nothing_is_left_is_named(build, write, tmp_path):
    path, long = write("a", range(9)), tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "what " * 50}) + "\n")
    with pytest.raises(DataError, match=r"max_prompt_tokens: all 1 prompts of '.*long.jsonl' are longer than 20"):
        build(sources=[RecordSource(path, 1), RecordSource(str(long), 1)], max_prompt_tokens=20)
    with pytest.warns(UserWarning, match="1 prompts are longer"):
        assert len(served(build([path, str(long)], max_prompt_tokens=20, batch_size=3), 3)) == 3
