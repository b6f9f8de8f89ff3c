import numpy as np
import pytest

from datamodules.encoding.texts import TextEncoder
from datamodules.encoding.tokenization import tokenize
from datamodules.encoding.tokenizer import train
from datamodules.errors import DataError
from datamodules.records.text_source import TextSource, text_units
from datamodules.serving.dataset import PackedRows
from datamodules.sources.units import Unit
from datamodules.storage import rows as rows_module
from datamodules.storage.held_out import held_out, unlike_share
from datamodules.storage.rows import Selection, pack_rows, split_documents
from datamodules.storage.shards import Document, Shard, write_shard


@pytest.fixture
def shards(write_jsonl, cache, texts) -> list[Shard]:
    tokenizer = train(iter(texts[:20]), vocab_size=300)
    paths = [write_jsonl(texts[i * 80 : i * 80 + 80], f"{i}.jsonl") for i in range(3)]
    return tokenize(
        [unit for path in paths for unit in text_units(TextSource(path), cache)], TextEncoder.of(tokenizer), cache
    )


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
    pieces = [tuple(piece.ids.tolist()) for row in range(len(packed)) for piece in packed[row]]
    expected = [doc[i : i + seq_len] for doc in documents_of(shards) for i in range(0, len(doc), seq_len)]
    assert sorted(pieces) == sorted(expected)
    assert all(0 < sum(len(piece.ids) for piece in packed[row]) <= seq_len for row in range(len(packed)))


def test_statistics_are_what_was_packed(shards, cache):
    index = pack_rows(shards, Selection(), 256, cache)
    documents = documents_of(shards)
    assert index.statistics["num_documents"] == len(documents) == 240
    assert index.statistics["num_tokens"] == sum(map(len, documents))
    assert index.statistics["num_too_long"] == sum(len(document) > 256 for document in documents)
    assert index.statistics["num_rows"] == len(index.rows()) - 1
    assert 1 - index.statistics["num_tokens"] / (index.statistics["num_rows"] * 256) < 0.02


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5])
def test_train_and_validation_are_apart_and_of_the_wanted_size(shards, share, cache):
    train_index, val_index = (pack_rows(shards, side, 64, cache) for side in split_documents(shards, share))
    assert val_index.statistics["num_documents"] == max(1, round(share * 240))
    tokens = [set(), set()]
    for side, index in zip(tokens, (train_index, val_index), strict=True):
        for span in index.documents()[:]:
            side.update(range(span["start"], span["start"] + span["length"]))
    assert not tokens[0] & tokens[1]
    assert len(tokens[0] | tokens[1]) == sum(shard.statistics["num_tokens"] for shard in shards)


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
            [p.ids.tolist() for p in copy[row]]
            == [p.ids.tolist() for p in packed[row]]
            == [p.ids.tolist() for p in packed[row % half]]
        )
    assert copy[-1] == []


@pytest.fixture
def conversations(cache) -> list[Shard]:
    """One shard of four documents of 10, 30, 50 and 90 tokens, of which the last three are trained."""
    shard = Shard(str(cache / "conversations"))
    made = [Document(np.arange(n, dtype="<u2"), np.arange(n) >= n - 3, n, n) for n in (10, 30, 50, 90)]

    class Made:
        dtype = np.dtype("<u2")

        def documents(self, unit, bad):
            yield from made

    write_shard(Unit("made", "jsonl", "made"), shard, Made(), "stop")
    return [shard]


@pytest.mark.parametrize(
    ("too_long", "lengths", "trained", "dropped"),
    [
        ("drop", [10, 30], 6, 2),
        ("left", [10, 30, 40, 40], 12, 0),
        ("right", [10, 30], 6, 2),
        # Of 50 = 40 + 10 and 90 = 40 + 40 + 10 only the ends hold something to learn.
        ("split", [10, 10, 10, 30], 12, 0),
    ],
)
def test_conversations_longer_than_a_row(conversations, cache, too_long, lengths, trained, dropped):
    index = pack_rows(conversations, Selection(), 40, cache, too_long)
    rows = PackedRows([(index, conversations)])
    pieces = [piece for row in range(len(rows)) for piece in rows[row]]
    assert sorted(len(piece.ids) for piece in pieces) == lengths
    assert sum(int(piece.trained[1:].sum()) for piece in pieces) == trained
    assert all(
        piece.trained[-3:].all() and np.array_equal(np.diff(piece.ids), [1] * (len(piece.ids) - 1)) for piece in pieces
    )
    expected = {"num_trained": trained, "num_dropped": dropped, "num_too_long": 2, "num_tokens": sum(lengths)}
    assert index.statistics | expected == index.statistics


def test_a_full_disk_is_a_message(shards, mount_small_disk, tmp_path):
    root = mount_small_disk(tmp_path / "disk", "16k")
    with pytest.raises(DataError, match=r"cache_dir: the disk of .* is full"):
        pack_rows(shards, Selection(), 8, root)
    assert not list((root / "rows").iterdir()) or [p.name for p in (root / "rows").iterdir()] == [".lock"]


def hashes(*copies: int) -> np.ndarray:
    """Hashes in their order, each as often as it is said."""
    return np.repeat(np.arange(len(copies), dtype=np.uint64), copies)


def validating(found: tuple[int, tuple[int, ...]], all_hashes: np.ndarray) -> list[int]:
    point, exceptions = found
    val = Selection(high=point, exceptions=exceptions).mask(all_hashes)
    assert (val ^ Selection(low=point + 1, exceptions=exceptions).mask(all_hashes)).all()
    return np.unique(all_hashes[val]).tolist()


@pytest.mark.parametrize("place", [0, 7, 35])
def test_a_question_that_most_records_share_does_not_fill_the_validation_part(place):
    copies = [1] * 35
    copies.insert(place, 365)
    some = hashes(*copies)
    chosen = validating(held_out([some[:200], some[200:]], 400, 0.05), some)
    assert len(chosen) == 20 and place not in chosen


@pytest.mark.parametrize(
    ("copies", "share", "chosen"),
    [
        ([1] * 10, 0.3, [0, 1, 2]),
        ([5] * 8, 0.05, [0]),  # nothing fits: the first of the smallest
        ([9, 5, 7, 5], 0.05, [1]),
        ([400], 0.05, [0]),
        ([30, 2, 30, 2, 1, 35], 0.05, [1, 3, 4]),
        ([2, 2, 2, 2, 2], 0.4, [0, 1]),
        ([1, 1], 0.0, []),
    ],
)
def test_copies_stay_together_and_as_near_the_share_as_they_can(copies, share, chosen):
    some = hashes(*copies)
    assert validating(held_out([some], len(some), share), some) == chosen


def test_a_share_that_cannot_be_met_is_said():
    assert unlike_share(0.05, 20, 400) is None and unlike_share(0.05, 1, 3) is None and unlike_share(0, 0, 9) is None
    assert "val_share=0.05: 100 of 400 validate (25.0%)" in str(unlike_share(0.05, 100, 400))
    assert "val_share=0.5: 3 of 100 validate" in str(unlike_share(0.5, 3, 100))
