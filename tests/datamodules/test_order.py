import numpy as np
import pytest

from datamodules.errors import DataError
from datamodules.serving.orders.order import SequentialOrder, ShuffledOrder, permute


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 4097, 65536])
def test_permute_is_a_bijection(size):
    assert np.array_equal(np.sort(permute(np.arange(size), size, 0)), np.arange(size))


def test_permute_needs_no_memory_for_its_domain():
    size = 10**12
    there = permute(np.arange(1000), size, 3)
    assert len(np.unique(there)) == 1000 and there.min() >= 0 and there.max() < size


def test_permute_mixes():
    """Over many keys each value goes everywhere about equally often, and neighbours part."""
    size, keys = 50, 2000
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), permute(np.arange(size), size, key)] += 1
    expected = keys / size
    chi2 = ((counts - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert abs(chi2 - freedom) < 6 * np.sqrt(2 * freedom)
    there = permute(np.arange(10_000), 10_000, 1)
    assert abs(np.corrcoef(there[:-1], there[1:])[0, 1]) < 0.05


def test_without_weights_every_row_comes_once_an_epoch_in_another_order():
    order = ShuffledOrder([100, 0, 23], seed=5)
    epochs = order[np.arange(3 * 123)].reshape(3, 123)
    assert all(np.array_equal(np.sort(epoch), np.arange(123)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], ShuffledOrder([100, 0, 23], seed=6)[np.arange(123)])


def test_the_order_is_a_function_of_the_index_alone():
    order = ShuffledOrder([70, 30], [1, 3])
    whole = order[np.arange(1000)]
    assert all(order[np.array([i])][0] == whole[i] for i in range(0, 1000, 37))


def test_weights_give_each_source_its_share_of_every_epoch_and_use_its_rows_evenly():
    order = ShuffledOrder([90, 10], weights=[1, 3])
    epochs = order[np.arange(8 * 100)].reshape(8, 100)
    assert [(epoch < 90).sum() for epoch in epochs] == [25] * 8
    uses = np.bincount(epochs.ravel(), minlength=100)
    assert uses[:90].min() == 2 and uses[:90].max() == 3  # 200 draws from 90 rows
    assert (uses[90:] == 60).all()  # 600 draws from 10 rows


def test_a_weight_that_gives_no_row_is_an_error():
    with pytest.raises(DataError, match="too small"):
        ShuffledOrder([90, 10], weights=[1, 1e-9])


def test_sequential_order_fills_up_with_blank_rows():
    order = SequentialOrder([5], multiple=4)
    assert order.epoch_len == 8
    assert order[np.arange(8)].tolist() == [0, 1, 2, 3, 4, -1, -1, -1]


def test_sources_are_read_one_after_the_other_each_up_to_a_whole_batch():
    order = SequentialOrder([3, 0, 4, 2], multiple=2)
    assert order.epoch_len == 10
    assert order[np.arange(10)].tolist() == [0, 1, 2, -1, 3, 4, 5, 6, 7, 8]
