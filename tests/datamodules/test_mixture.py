"""Mixtures whose shares change: the order against what the weights say, and what users may write."""

import json
import re

import numpy as np
import pytest

from datamodules import TextDataModule
from datamodules.errors import DataError
from datamodules.records.text_source import TextSource
from datamodules.serving.orders.mixture import BLOCK, MixtureOrder, Share
from datamodules.serving.orders.schedule import check_weights, names_of, plan_in_words, scheduled, tempered

MANY = 10**9


def points(*pairs) -> np.ndarray:
    return np.array(pairs, float)


def sources_of(order: MixtureOrder, rows: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(order.num_rows), rows, side="right")


@pytest.mark.parametrize("seed", range(5))
def test_shares_follow_the_schedule_to_a_hundredth_over_any_window(seed):
    weights = [points((0, 8), (60_000, 1)), points((0, 1)), points((0, 0), (30_000, 0), (30_001, 3))]
    order = MixtureOrder([Share(MANY, weight) for weight in weights], seed)
    samples = np.arange(100_000)
    expected = np.stack([np.interp(samples, *weight.T) for weight in weights], axis=1)
    expected /= expected.sum(axis=1, keepdims=True)
    found = np.eye(3)[sources_of(order, order[samples])]
    difference = np.cumsum(np.vstack([np.zeros(3), found - expected]), axis=0)
    for window in (1_000, 3_333, 20_000):
        assert np.abs(difference[window:] - difference[:-window]).max() / window < 0.01


def test_it_is_a_function_of_the_index_alone():
    shares = [Share(70, points((0, 1), (50_000, 9))), Share(30, points((0, 3)), most=4_000)]
    whole = MixtureOrder(shares, seed=3)[np.arange(3 * BLOCK)]
    again = MixtureOrder(shares, seed=3)
    places = np.random.default_rng(0).permutation(3 * BLOCK)[:500]
    assert np.array_equal(again[places], whole[places])
    assert not np.array_equal(MixtureOrder(shares, seed=4)[np.arange(1000)], whole[:1000])


def test_each_source_walks_through_its_rows_once_before_any_comes_again():
    order = MixtureOrder([Share(90, points((0, 1), (1000, 5))), Share(7, points((0, 2)))])
    rows = order[np.arange(5_000)]
    for first, size in ((0, 90), (90, 7)):
        own = rows[(rows >= first) & (rows < first + size)]
        turns = own[: len(own) // size * size].reshape(-1, size)
        assert len(turns) > 5
        assert all(np.array_equal(np.sort(turn), np.arange(first, first + size)) for turn in turns)
        assert not np.array_equal(turns[0], turns[1])


def test_what_is_used_up_leaves_its_share_to_the_others():
    shares = [Share(1000, points((0, 1)), most=2_500), Share(MANY, points((0, 1))), Share(MANY, points((0, 2)))]
    order = MixtureOrder(shares)
    sources = sources_of(order, order[np.arange(40_000)])
    assert (sources == 0).sum() == 2_500 and np.flatnonzero(sources == 0).max() == pytest.approx(10_000, rel=0.01)
    assert (sources[20_000:] == 1).mean() == pytest.approx(1 / 3, abs=0.01)
    assert np.array_equal(order.counts(40_000), np.bincount(sources))
    assert np.array_equal(order.counts(12_345), np.bincount(sources[:12_345], minlength=3))


def test_nothing_left_is_said():
    order = MixtureOrder([Share(100, points((0, 1)), most=300), Share(10, points((0, 1)), most=20)])
    assert len(order[np.arange(320)]) == 320 and order.counts(320).tolist() == [300, 20]
    for ask in (lambda: order.counts(321), lambda: order[np.arange(310, 330)], lambda: order.counts(2 * BLOCK)):
        with pytest.raises(DataError, match="at row 320 of the run every source is used up"):
            ask()


def test_a_plan_says_shares_and_epochs():
    sources = [
        TextSource("web/*.txt", weight=3.0),
        TextSource("good", 1.0, weight_schedule=[(64_000, 1.0), (64_001, 3.0)]),
    ]
    order = scheduled(sources, [5_000, 100], seq_len=64, seed=0)
    web, good = plan_in_words(order, names_of(sources), 2_000)
    assert re.fullmatch(r"web: 62\.\d% of the run's rows, 0\.25 epochs", web)
    assert re.fullmatch(r"good: 37\.\d% of the run's rows, 7\.5\d epochs", good)


def test_what_is_added_keeps_its_share():
    order = scheduled([TextSource("a", 2.0, max_epochs=50)], [100, 25], seq_len=8, seed=0)
    assert order.counts(1_000).tolist() == pytest.approx([800, 200], abs=3)


def test_temperatures():
    assert tempered([900, 100], 1) == [900, 100]
    ratio = tempered([900, 100], 2)
    assert ratio[0] / ratio[1] == pytest.approx(3)


def test_names_are_short_and_different():
    found = names_of([TextSource(path) for path in ("a/web.jsonl.gz", "b/web/", "c/web/*.txt", "owner/name")])
    assert found == ["web", "web-2", "web-3", "name"]


@pytest.mark.parametrize(
    ("sources", "temperature", "words"),
    [
        ([TextSource("a", weight_schedule=[(1, 2)])], None, "the weight_schedule of 'a' needs a weight"),
        ([TextSource("a", max_epochs=2)], None, "the max_epochs of 'a' needs a weight"),
        ([TextSource("a", 1.0, max_epochs=0)], None, "must be above 0, not 0"),
        ([TextSource("a", 1.0, weight_schedule=[(5, 1), (5, 2)])], None, "whose tokens grow"),
        ([TextSource("a", 1.0, weight_schedule=[])], None, "whose tokens grow"),
        ([TextSource("a", 1.0, weight_schedule=[(5, -1)])], None, "has a weight below 0"),
        ([TextSource("a", 0.0)], None, "a weight must be above 0"),
        ([TextSource("a", 1.0)], 2.0, "temperature and sources' weights"),
        ([TextSource("a")], 0.0, "temperature: it must be above 0"),
    ],
)
def test_mistakes_are_named(sources, temperature, words):
    with pytest.raises(DataError, match=words):
        check_weights(sources, temperature)


def test_a_source_of_which_nothing_trains_is_named_though_its_weight_begins_at_0(tmp_path):
    (tmp_path / "many.jsonl").write_text("".join(json.dumps({"text": f"{i} abc " * 30}) + "\n" for i in range(40)))
    later = {"weight": 0.0, "weight_schedule": [(100.0, 1.0)]}
    refused = 0
    for number in range(8):
        (tmp_path / f"one-{number}.jsonl").write_text(json.dumps({"text": f"only this {number} " * 20}) + "\n")
        sources = [
            TextSource(str(tmp_path / "many.jsonl"), 1.0),
            TextSource(str(tmp_path / f"one-{number}.jsonl"), **later),
        ]
        data = TextDataModule(
            sources=sources, vocab_size=300, seq_len=32, batch_size=2, val_share=0.5, cache_dir=str(tmp_path)
        )
        try:
            data.prepare_data()
        except DataError as error:
            assert f"one-{number}.jsonl" in str(error) and "falls to validation" in str(error)
            refused += 1
    assert 0 < refused < 8


def test_with_a_temperature_too_a_source_of_which_nothing_trains_is_named(tmp_path):
    (tmp_path / "many.jsonl").write_text("".join(json.dumps({"text": f"{i} abc " * 30}) + "\n" for i in range(40)))
    sources = [TextSource(str(tmp_path / name)) for name in ("many.jsonl", "one.jsonl")]
    said = 0
    for number in range(8):
        (tmp_path / "one.jsonl").write_text(json.dumps({"text": f"only this {number} " * 20}) + "\n")
        data = TextDataModule(
            sources=sources, vocab_size=300, seq_len=32, batch_size=2, val_share=0.5, temperature=2.0,
            cache_dir=str(tmp_path),
        )  # fmt: skip
        try:
            data.prepare_data()
        except DataError as error:
            assert "one.jsonl" in str(error) and "falls to validation" in str(error)
            said += 1
    assert 0 < said < 8
