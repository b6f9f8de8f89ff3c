import numpy as np
import pytest

from datamodules.storage.packing import best_fit


def row_lengths(lengths, row_of, num_rows):
    return np.bincount(row_of, weights=lengths, minlength=num_rows)


@pytest.mark.parametrize("capacity", [1, 7, 128, 1024])
@pytest.mark.parametrize("seed", range(5))
def test_no_row_overflows_and_no_row_is_empty(capacity, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, capacity + 1, size=rng.integers(1, 3000))
    row_of, num_rows = best_fit(lengths, capacity)
    used = row_lengths(lengths, row_of, num_rows)
    assert used.max() <= capacity and used.min() > 0
    assert used.sum() == lengths.sum()


@pytest.mark.parametrize("capacity", [10, 100])
def test_as_good_as_best_fit_decreasing_one_by_one(capacity):
    lengths = np.random.default_rng(0).integers(1, capacity // 2, size=800)
    rooms: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fits = [i for i, room in enumerate(rooms) if room >= length]
        if not fits:
            rooms.append(capacity)
            fits = [len(rooms) - 1]
        rooms[min(fits, key=rooms.__getitem__)] -= length
    assert best_fit(lengths, capacity)[1] <= len(rooms)


def test_documents_of_natural_lengths_leave_hardly_any_padding():
    lengths = np.random.default_rng(0).lognormal(5.5, 1, 100_000).astype(int).clip(1, 1024)
    _, num_rows = best_fit(lengths, 1024)
    assert lengths.sum() / (num_rows * 1024) > 0.999


def test_nothing_to_pack():
    row_of, num_rows = best_fit(np.empty(0, np.int64), 8)
    assert len(row_of) == num_rows == 0
