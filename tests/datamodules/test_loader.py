import random

import pytest
import torch
from torch.utils.data import Dataset

from datamodules.serving.loader import EvaluationLoader, ResumableLoader
from datamodules.serving.orders.order import SequentialOrder, ShuffledOrder


class Numbers(Dataset):
    def __getitem__(self, row: int) -> int:
        return row


def loader(position=0, rank=0, num_ranks=1, num_workers=0, batch_size=4, kind=ResumableLoader, order=None):
    order = order or ShuffledOrder([37, 13], seed=1)
    return kind(Numbers(), order, list, batch_size, rank, num_ranks, num_workers, position)


def stream(num_samples: int) -> list[int]:
    order = ShuffledOrder([37, 13], seed=1)
    import numpy as np

    return order[np.arange(num_samples)].tolist()


def take(loaders: list[ResumableLoader], num_batches: int) -> list[int]:
    """The samples of all ranks in their global order, over as many epochs as it takes; -1 is blank."""
    samples: list[int] = []
    iterators = [iter(each) for each in loaders]
    while num_batches:
        try:
            samples += [sample for iterator in iterators for sample in next(iterator)]
            num_batches -= 1
        except StopIteration:
            iterators = [iter(each) for each in loaders]
    return samples


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ranks_and_workers_read_the_same_stream_in_turns(num_ranks, num_workers):
    loaders = [loader(rank=rank, num_ranks=num_ranks, num_workers=num_workers) for rank in range(num_ranks)]
    num_batches = 30 // num_ranks
    samples = take(loaders, num_batches)
    assert len(samples) == 4 * num_ranks * num_batches
    real = [sample for sample in samples if sample >= 0]
    assert real == stream(len(real))
    # An epoch's last batch is filled up with blank rows, and the next batch begins the next epoch.
    blank = -50 % (4 * num_ranks)
    assert samples[50 : 50 + blank] == [-1] * blank and samples[50 + blank] >= 0


@pytest.mark.parametrize(("num_rows", "num_ranks"), [(7, 1), (7, 2), (3, 1), (3, 2), (8, 2), (9, 1), (1, 3)])
def test_an_epoch_holds_every_row_once_in_equally_many_batches_of_each_rank(num_rows, num_ranks):
    order = ShuffledOrder([num_rows], seed=1)
    loaders = [loader(rank=rank, num_ranks=num_ranks, order=order) for rank in range(num_ranks)]
    for epoch in (1, 2, 3):
        batches = [list(each) for each in loaders]
        assert {len(each) for each in batches} == {len(loaders[0])} == {-(-num_rows // (4 * num_ranks))}
        rows = [row for each in batches for batch in each for row in batch]
        assert sorted(row for row in rows if row >= 0) == list(range(num_rows))
        assert {each.position for each in loaders} == {epoch * num_rows}


def test_where_batches_are_whole_left_over_rows_begin_the_next_epoch():
    one = ResumableLoader(Numbers(), ShuffledOrder([37, 13], seed=1), list, 4, whole_batches=True)
    assert len(one) == 12 and take([one], 30) == stream(120)


@pytest.mark.parametrize("trial", range(8))
def test_resuming_anywhere_on_other_ranks_and_workers_goes_on_in_the_stream(trial):
    rng = random.Random(trial)
    position, samples = 0, []
    for num_ranks, num_workers in ((2, 0), (1, 2 * (trial % 2)), (3, 0)):
        loaders = [loader(rank=rank, num_ranks=num_ranks, num_workers=num_workers) for rank in range(num_ranks)]
        for each in loaders:
            each.load_state_dict({"position": position})
        samples += [sample for sample in take(loaders, rng.randint(1, 20)) if sample >= 0]
        states = [each.state_dict() for each in loaders]
        assert all(state == states[0] for state in states)
        position = states[0]["position"]
        assert position == len(samples)
    assert samples == stream(len(samples))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_state_counts_batches_handed_out_not_fetched_ahead(num_workers):
    one = loader(num_workers=num_workers)
    iterator = iter(one)
    assert one.state_dict() == {"position": 0}
    next(iterator)
    next(iterator)
    assert one.state_dict() == {"position": 8}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_global_random_state_is_left_alone(num_workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert len(list(loader(num_workers=num_workers))) == 13
    assert torch.equal(torch.get_rng_state(), before)


def test_fewer_rows_than_a_batch_still_make_one():
    one = loader(order=ShuffledOrder([3]))
    assert len(one) == 1 and sorted(next(iter(one))) == [-1, 0, 1, 2]


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_evaluation_shows_each_row_once_each_time_equally_often_on_each_rank(num_ranks):
    order = SequentialOrder([13], 4 * num_ranks)
    loaders = [loader(rank=r, num_ranks=num_ranks, kind=EvaluationLoader, order=order) for r in range(num_ranks)]
    for _ in range(2):
        batches = [list(each) for each in loaders]
        assert {len(rank) for rank in batches} == {len(loaders[0])}
        rows = [row for rank in batches for batch in rank for row in batch]
        assert sorted(row for row in rows if row >= 0) == list(range(13))
