import pytest
import torch

from callbacks.pruning.masks import pack, unpack
from callbacks.pruning.selection import lowest, lowest_in_rows, sort_keys


def keys_of(scores, kept=None):
    return sort_keys(scores, kept)


@pytest.mark.parametrize("count", [0, 1, 7, 500, 999, 1000])
def test_the_lowest_of_a_matrix_are_those_that_sorting_finds(count):
    scores = torch.randn(25, 40, generator=torch.Generator().manual_seed(0)).abs()
    (marked,) = lowest([keys_of(scores)], count)
    expected = torch.zeros(1000, dtype=torch.bool)
    expected[scores.flatten().argsort()[:count]] = True
    assert torch.equal(marked.flatten(), expected)


@pytest.mark.parametrize("count", [1, 3, 6, 10, 11])
def test_ties_are_broken_by_place_so_that_the_count_is_exact(count):
    scores = torch.tensor([[1.0, 0.0, 1.0, 1.0], [2.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
    (marked,) = lowest([keys_of(scores)], count)
    order = scores.flatten().argsort(stable=True)
    assert marked.sum() == count and marked.flatten()[order[:count]].all()


def test_the_lowest_of_several_matrices_compete_with_each_other():
    scores = [torch.tensor([[5.0, 1.0]]), torch.tensor([[0.5], [9.0], [2.0]])]
    marked = lowest([keys_of(s) for s in scores], 3)
    assert marked[0].tolist() == [[False, True]]
    assert marked[1].tolist() == [[True], [False], [True]]


def test_what_is_pruned_already_comes_first_even_at_score_zero():
    scores, kept = torch.tensor([[0.0, 0.0, 3.0, 4.0]]), torch.tensor([[True, True, True, False]])
    (marked,) = lowest([keys_of(scores, kept)], 1)
    assert marked.tolist() == [[False, False, False, True]]


def test_what_is_not_a_number_is_kept_to_the_last():
    (marked,) = lowest([keys_of(torch.tensor([[float("nan"), float("inf"), 1.0]]))], 2)
    assert marked.tolist() == [[False, True, True]]


@pytest.mark.parametrize("count", [0, 5, 20, 33, 60])
def test_rows_lose_equally_many_and_the_whole_is_exact(count):
    scores = torch.rand(7, 9, generator=torch.Generator().manual_seed(1))
    marked = lowest_in_rows(keys_of(scores), count, num_rows=7, first_row=0)
    in_rows = marked.sum(1)
    assert in_rows.sum() == count and in_rows.max() - in_rows.min() <= 1
    for row, chosen, num in zip(scores, marked, in_rows, strict=True):
        assert set(row.argsort()[:num].tolist()) == set(chosen.nonzero()[:, 0].tolist())
    # Two ranks with four and three rows decide the same.
    parts = [lowest_in_rows(keys_of(scores[i:j]), count, 7, i) for i, j in ((0, 4), (4, 7))]
    assert torch.equal(torch.cat(parts), marked)


@pytest.mark.parametrize("shape", [(3, 5), (8,), (1, 1), (64, 33), (0, 4)])
def test_masks_are_packed_into_an_eighth(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.4
    bits = pack(mask)
    assert bits.dtype == torch.uint8 and len(bits) == -(-mask.numel() // 8)
    assert torch.equal(unpack(bits, mask.shape), mask)
