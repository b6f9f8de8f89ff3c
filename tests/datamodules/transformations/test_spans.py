"""Span corruption: what is taken out comes back, and the same is taken out whoever reads it."""

from itertools import chain, islice, repeat

import numpy as np
import pytest
import torch

from datamodules import DataError, TextDataModule
from datamodules.encoding.tokenizer import train
from datamodules.serving.collate import Piece
from datamodules.serving.dataset import Documents
from datamodules.transformations.draws import generator
from datamodules.transformations.infilling import FillInTheMiddle
from datamodules.transformations.spans import SpanCollator, SpanCorruption, Spans


@pytest.fixture
def tokenizer(texts):
    made = train(iter(texts), 300)
    made.add_tokens([f"<extra_id_{i}>" for i in range(40)], special_tokens=True)
    return made


def ids_of(tokenizer, text: str) -> np.ndarray:
    return np.array([*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id], np.uint16)


def test_a_document_comes_back_exactly(tokenizer, texts):
    spans = Spans(SpanCorruption(), tokenizer, 512)
    for number, text in enumerate(texts):
        ids = ids_of(tokenizer, text)[:500]
        made = spans.corrupted(ids.astype(np.int64), generator(0, number))
        assert np.array_equal(spans.restored(made), ids)
        count = sum(mark in made.ids for mark in spans.sentinels.tolist())
        taken, expected = spans.settings.counts(int((ids != tokenizer.eos_token_id).sum()))
        assert count == expected and len(made.ids) == len(ids) - taken + count
        assert len(made.targets) == taken + count + 1 and made.targets[-1] == tokenizer.eos_token_id
        assert made.targets[0] == spans.sentinels[0]


@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 1.0), (0.5, 12.0), (0.9, 1.0), (0.01, 3.0)])
def test_shares_and_lengths_are_those_asked_for(tokenizer, density, mean):
    settings = SpanCorruption(density, mean)
    for length in (2, 3, 10, 100, 1000):
        taken, count = settings.counts(length)
        assert 1 <= count <= taken < length and count <= length - taken + 1
    spans = Spans(SpanCorruption(density, max(mean, 3.0)), tokenizer, 100)
    made = [spans.corrupted(np.arange(5, 85), generator(1, i)) for i in range(400)]
    assert all(np.array_equal(spans.restored(each), np.arange(5, 85)) for each in made)
    gone = np.mean([np.isin(np.arange(5, 85), each.targets) for each in made], axis=0)
    for part in (gone[:20], gone[20:60], gone[60:]):  # the beginning and the end go like the middle
        assert abs(part.mean() - spans.settings.counts(80)[0] / 80) < 0.25 * min(density, 1 - density) + 0.02


def test_short_documents_have_nothing_to_tell(tokenizer):
    spans = Spans(SpanCorruption(), tokenizer, 512)
    end = tokenizer.eos_token_id
    row = [Piece(np.array(ids)) for ids in ([end], [7, end], [7, 8], [end, 7, 8, end], [])]
    made = spans(row, time=0, number=0)
    assert [spans.restored(each).tolist() for each in made] == [[7, 8], [end, 7, 8, end]]


def test_a_batch_is_as_wide_as_its_widest_row(tokenizer):
    spans = Spans(SpanCorruption(), tokenizer, 512)
    rows = [spans([Piece(np.arange(5, 5 + n)) for n in lengths], time=0, number=n) for n, lengths in
            enumerate([(20, 30), (40,), ()])]  # fmt: skip
    batch = SpanCollator(1)(rows)
    assert batch["input_ids"].shape == batch["input_documents"].shape == (3, sum(len(e.ids) for e in rows[0]))
    assert batch["labels"].shape == batch["label_documents"].shape == (3, sum(len(e.targets) for e in rows[0]))
    for number, row in enumerate(rows):
        for place, each in enumerate(row):
            assert batch["input_ids"][number][batch["input_documents"][number] == place].tolist() == each.ids.tolist()
            told = batch["labels"][number][batch["label_documents"][number] == place]
            assert told.tolist() == each.targets.tolist()
    assert (batch["labels"][2] == -100).all() and (batch["input_ids"][2] == 1).all()
    assert SpanCollator(1)([[]])["input_ids"].tolist() == [[1]]


@pytest.fixture
def module(write_jsonl, cache, texts):
    path = write_jsonl([f"{text} <extra_id_0> {'word ' * 20}" for text in texts])

    def make(**settings) -> TextDataModule:
        given = {"path": path, "vocab_size": 400, "seq_len": 128, "batch_size": 4, "spans": SpanCorruption()} | settings
        data = TextDataModule(cache_dir=str(cache), **given)
        data.prepare_data()
        data.setup("fit")
        return data

    return make


def first(data: TextDataModule, count: int) -> list[dict]:
    loader = data.train_dataloader()
    epochs = chain.from_iterable(iter(loader) for _ in repeat(None))
    return list(islice(epochs, count))


def equal(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(torch.equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)


def test_workers_and_resuming_change_nothing_and_each_epoch_is_another(module):
    data = module()
    epoch = len(data.train_dataloader())
    whole = first(data, 2 * epoch + 2)
    assert equal(whole[:9], first(module(num_workers=2), 9))
    stopped, again = module(), module()
    first(stopped, epoch + 1)
    again.load_state_dict(stopped.state_dict())
    assert equal(whole[epoch + 1 :], first(again, epoch + 1))
    assert not equal(whole[:epoch], whole[epoch : 2 * epoch])
    assert module(seed=1).rows_key() != data.rows_key() != module(spans=SpanCorruption(0.2)).rows_key()
    val = [list(data.val_dataloader()) for _ in range(2)]
    assert val[0] and equal(*val)


def test_two_ranks_read_what_one_reads(module):
    class Ranked(TextDataModule):
        def data_ranks(self):
            return {"rank": self.rank, "num_ranks": 2}

    one = first(module(batch_size=4), 6)
    parts = []
    for rank in range(2):
        data = module(batch_size=2)
        data.__class__ = Ranked
        data.rank = rank
        parts.append(first(data, 6))

    def documents(batches: list[dict]) -> set[tuple[int, ...]]:
        return {
            tuple(row[row != -100].tolist()) for batch in batches for row in batch["labels"]
        }  # fmt: skip

    assert documents(one) == documents(parts[0]) | documents(parts[1])
    assert not documents(parts[0]) & documents(parts[1])


def test_a_text_that_spells_a_sentinel_is_text_and_little_is_padded(module):
    data = module()
    spans = data._masks
    for document in (Documents(data._train)[i] for i in range(10)):
        assert not np.isin(document.ids, spans.sentinels).any()
    batches = first(data, len(data.train_dataloader()))
    for name in ("input_documents", "label_documents"):
        padded = sum(int((batch[name] < 0).sum()) for batch in batches) / sum(batch[name].numel() for batch in batches)
        assert padded < 0.15
    assert next(iter(data.preview(2))).startswith("--- document 1: reads ")


def test_mistakes_are_named(module, tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"seq_len=1024 tokens has up to 51 spans, and the tokenizer has 40 sentinels"):
        Spans(SpanCorruption(), tokenizer, 1024)
    with pytest.raises(DataError, match=r"spans: the tokenizer has no sentinels \('<mark_0>'"):
        Spans(SpanCorruption(sentinel="<mark_{}>"), tokenizer, 128)
    for changed, words in {
        SpanCorruption(density=1.0): "density must lie between 0 and 1, not 1.0",
        SpanCorruption(mean_length=0.5): "mean_length must be at least 1, not 0.5",
        SpanCorruption(sentinel="<x>"): "sentinel must have {} where the number stands",
    }.items():
        with pytest.raises(DataError, match=f"spans: {words}"):
            module(spans=changed)
    with pytest.raises(DataError, match="fim and spans: give one of them"):
        module(fim=FillInTheMiddle())
    with pytest.raises(DataError, match="document_mask: with spans"):
        module(document_mask=False)
