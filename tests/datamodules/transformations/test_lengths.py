"""Documents that are cut at a growing length: against a loop, on any ranks and workers, and from any place on."""

import json

import numpy as np
import pytest
import torch

from datamodules import TextDataModule
from datamodules.errors import DataError
from datamodules.serving.loader import ResumableLoader
from datamodules.serving.orders.order import ShuffledOrder
from datamodules.transformations.infilling import FillInTheMiddle
from datamodules.transformations.lengths import Cutter, LengthCurriculum

T = 16
CURRICULUM = LengthCurriculum(start=3, tokens=20 * T)


def test_the_length_grows_in_a_straight_line_and_stays():
    lengths = CURRICULUM.lengths(np.arange(40), T)
    assert lengths.tolist() == [3 + 13 * min(20, sample) // 20 for sample in range(40)]
    far = LengthCurriculum(start=64, tokens=4e12).lengths(np.array([0, 10**7, 2**31, 2**40]), 131_072)
    assert far.tolist() == [64, 64 + int(131_008 * 0.32768), 131_072, 131_072]


class Rows(torch.utils.data.Dataset):
    def __getitem__(self, row):
        return row


def collate(rows):
    """Two documents a row, of which the first has as many tokens as the row's number says."""
    positions = torch.stack([torch.cat([torch.arange(row % 10 + 1), torch.arange(T - row % 10 - 1)]) for row in rows])
    labels = torch.stack([torch.arange(T) + 100 * (row + 1) for row in rows])
    return {"position_ids": positions, "labels": labels.masked_fill(positions == 0, -100), "rows": torch.tensor(rows)}


def served(num_rows=60, *, batch_size=4, num_ranks=1, num_workers=0, position=0):
    order = ShuffledOrder([30], seed=2)
    ranks = [
        ResumableLoader(
            Rows(), order, collate, batch_size, rank, num_ranks, num_workers, position, whole_batches=True,
            finish=Cutter(CURRICULUM, T),
        )
        for rank in range(num_ranks)
    ]  # fmt: skip
    found, iterators = [], [iter(each) for each in ranks]
    while len(found) < num_rows - position:
        for i, iterator in enumerate(iterators):
            batch = next(iterator, None)
            if batch is None:
                iterators[i] = iter(ranks[i])
                batch = next(iterators[i])
            found += zip(*(batch[name].tolist() for name in ("rows", "position_ids", "labels")), strict=True)
    return found[: num_rows - position]


def test_rows_are_those_of_a_loop():
    rows = ShuffledOrder([30], seed=2)[np.arange(60)].tolist()
    for sample, (row, positions, labels) in enumerate(served()):
        assert row == rows[sample]
        length, expected = 3 + 13 * min(20, sample) // 20, []
        for document in (row % 10 + 1, T - row % 10 - 1):
            while document:
                expected += range(part := min(length, document))
                document -= part
        assert positions == expected
        assert labels == [-100 if place == 0 else 100 * (row + 1) + n for n, place in enumerate(expected)]


@pytest.mark.parametrize(
    "options", [{"num_ranks": 2, "batch_size": 2}, {"num_workers": 1}, {"batch_size": 3}, {"position": 12}]
)
def test_they_are_the_same_on_other_ranks_workers_batches_and_from_any_place(options):
    assert served(**options) == served()[options.get("position", 0) :]


def built(tmp_path, **options):
    texts = [" ".join(f"{n} and {n * m} are two numbers of many." for m in range(9)) for n in range(60)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = TextDataModule(
        str(tmp_path / "texts.jsonl"), vocab_size=300, seq_len=32, batch_size=2, cache_dir=str(tmp_path), **options
    )
    data.prepare_data()
    data.setup("fit")
    return data


def test_texts_begin_short_and_end_whole_and_validation_is_whole(tmp_path):
    curriculum = LengthCurriculum(start=4, tokens=32 * 8)
    ours, plain = built(tmp_path, length_curriculum=curriculum), built(tmp_path)
    batches = list(zip(range(6), ours.train_dataloader(), plain.train_dataloader(), strict=False))
    for number, cut, whole in batches:
        assert torch.equal(cut["input_ids"], whole["input_ids"])
        if number != 3:  # cut at 25 and 28 tokens of 32, which documents may not have
            assert torch.equal(cut["position_ids"], whole["position_ids"]) == (number > 3)
    assert batches[0][1]["position_ids"].max() == 6  # 4 + 28 // 8 tokens in its second row
    assert all(
        torch.equal(a["labels"], b["labels"])
        for a, b in zip(ours.val_dataloader(), plain.val_dataloader(), strict=True)
    )
    assert ours.rows_key() != plain.rows_key()
    with pytest.raises(DataError, match="not those of the checkpoint"):
        plain.load_state_dict(ours.state_dict())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length_curriculum": LengthCurriculum(1, 100)}, "start must be at least 2 and below seq_len=32, not 1"),
        ({"length_curriculum": LengthCurriculum(32, 100)}, "below seq_len=32, not 32"),
        ({"length_curriculum": LengthCurriculum(4, 0)}, "tokens must be above 0, not 0"),
        (
            {"length_curriculum": LengthCurriculum(4, 9), "fim": FillInTheMiddle()},
            "length_curriculum and fim: give one",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, options, words):
    with pytest.raises(DataError, match=words):
        built(tmp_path, **options)
