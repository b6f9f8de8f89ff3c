import numpy as np
import pytest

from datamodules import rows as rows_module
from datamodules.dataset import PackedRows
from datamodules.rows import Selection, pack_rows, split_documents
from datamodules.shards import Shard
from datamodules.sources import Source, resolve
from datamodules.tokenization import tokenize
from datamodules.tokenizer import train


@pytest.fixture
def shards(write_jsonl, cache, texts) -> list[Shard]:
    tokenizer = train(iter(texts[:20]), vocab_size=300)
    paths = [write_jsonl(texts[i * 80 : i * 80 + 80], f"{i}.jsonl") for i in range(3)]
    return tokenize([unit for path in paths for unit in resolve(Source(path), cache)], tokenizer, cache)


def documents_of(shards: list[Shard]) -> list[tuple[int, ...]]:
    return [
        tuple(ids.tolist())
        for shard in shards
        for ids in np.split(shard.tokens[:], shard.documents()["end"][:-1].astype(int))
    ]


@pytest.mark.parametrize("seq_len", [2, 64, 257, 4096])
@pytest.mark.parametrize("window", [32, 1 << 17])
def test_every_token_is_in_exactly_one_row_in_its_document_s_order(shards, seq_len, window, cache, monkeypatch):
    monkeypatch.setattr(rows_module, "WINDOW", window)
    packed = PackedRows([(pack_rows(shards, Selection(), seq_len, cache), shards)])
    pieces = [tuple(piece.tolist()) for row in range(len(packed)) for piece in packed[row]]
    expected = [doc[i : i + seq_len] for doc in documents_of(shards) for i in range(0, len(doc), seq_len)]
    assert sorted(pieces) == sorted(expected)
    assert all(0 < sum(map(len, packed[row])) <= seq_len for row in range(len(packed)))


def test_facts_are_what_was_packed(shards, cache):
    index = pack_rows(shards, Selection(), 256, cache)
    documents = documents_of(shards)
    assert index.facts["num_documents"] == len(documents) == 240
    assert index.facts["num_tokens"] == sum(map(len, documents))
    assert index.facts["num_cut"] == sum(len(document) > 256 for document in documents)
    assert index.facts["num_rows"] == len(index.rows()) - 1
    assert 1 - index.facts["num_tokens"] / (index.facts["num_rows"] * 256) < 0.02


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5])
def test_train_and_validation_are_apart_and_of_the_wanted_size(shards, share, cache):
    train_index, val_index = (pack_rows(shards, side, 64, cache) for side in split_documents(shards, share))
    assert val_index.facts["num_documents"] == max(1, round(share * 240))
    tokens = [set(), set()]
    for side, index in zip(tokens, (train_index, val_index), strict=True):
        for span in index.documents()[:]:
            side.update(range(span["start"], span["start"] + span["length"]))
    assert not tokens[0] & tokens[1]
    assert len(tokens[0] | tokens[1]) == sum(shard.facts["num_tokens"] for shard in shards)


def test_a_document_keeps_its_side_when_others_come_and_its_copies_go_with_it(shards):
    _, few = split_documents(shards[:2], 0.1)
    _, all_of_them = split_documents(shards, 0.1)
    hashes = shards[0].documents()["hash"]
    assert abs(int(few.mask(hashes).sum()) - int(all_of_them.mask(hashes).sum())) <= 4
    smaller, larger = sorted((few, all_of_them), key=lambda side: side.high)
    assert not (smaller.mask(hashes) & ~larger.mask(hashes)).any()


def test_no_validation_share_takes_no_document(shards):
    everything, nothing = split_documents(shards, 0)
    hashes = shards[0].documents()["hash"]
    assert everything.mask(hashes).all() and not nothing.mask(hashes).any()


def test_rows_travel_to_processes_as_paths(shards, cache):
    import pickle

    packed = PackedRows([(pack_rows(shards, Selection(), 64, cache), shards)] * 2)
    data = pickle.dumps(packed)
    assert len(data) < 4000
    copy = pickle.loads(data)
    half = len(packed) // 2
    for row in (0, half - 1, half, 2 * half - 1):
        assert (
            [p.tolist() for p in copy[row]]
            == [p.tolist() for p in packed[row]]
            == [p.tolist() for p in packed[row % half]]
        )
    assert copy[-1] == []
