"""Finding the lowest scores of tensors that may lie on several ranks, exactly, without gathering them on one."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from callbacks.pruning.weights import reduce_sum

LAST = 2**31 - 1
"""A key behind that of every score."""

BITS = 8
"""Of a key that one pass looks at: 256 counts are all that ranks exchange in each of four passes."""


def sort_keys(scores: Tensor, kept: Tensor | None) -> Tensor:
    """Scores as int32 keys of the same order, 0 where something is pruned already.

    Args:
        scores: float32, not negative. What is not a number sorts last.
        kept: False where pruned; None where nothing is.
    """
    # The bits of floats that are not negative have the order of the floats.
    keys = scores.float().abs().contiguous().view(torch.int32) + 1
    return keys if kept is None else keys.mul_(kept.view(torch.uint8).expand_as(keys))


def lowest(keys: Sequence[Tensor], count: int, group: Any = None) -> list[Tensor]:
    """Marks exactly the `count` lowest of all keys, over the ranks of a group: a radix selection.

    Among equal keys those of the first rank, then of the first tensor, then of the first place are taken.

    Args:
        keys: int32, not negative; on each rank its part.
        count: of all ranks together, at most as many as there are keys.
        group: the ranks that hold parts; None where this process holds all.

    Returns:
        A bool tensor for each of `keys`.
    """
    if count <= 0:
        return [torch.zeros_like(k, dtype=torch.bool) for k in keys]
    candidates, wanted, threshold = [k.flatten() for k in keys], count, 0
    for shift in range(32 - BITS, -1, -BITS):
        digits = [(c >> shift) & (2**BITS - 1) for c in candidates]
        counts = sum(torch.bincount(d, minlength=2**BITS) for d in digits)
        assert isinstance(counts, Tensor)
        if group is not None:
            reduce_sum(counts, group)
        up_to = counts.cumsum(0)
        digit = int(torch.searchsorted(up_to, wanted))
        wanted -= int(up_to[digit] - counts[digit])
        threshold |= digit << shift
        candidates = [c[d == digit] for c, d in zip(candidates, digits, strict=True)]
    return _with_ties(keys, threshold, wanted, [len(c) for c in candidates], group)


def _with_ties(keys: Sequence[Tensor], threshold: int, wanted: int, ties: list[int], group: Any) -> list[Tensor]:
    """All below the threshold, and the first `wanted` of those that equal it."""
    before = 0
    if group is not None:
        of_ranks: list[int] = [0] * dist.get_world_size(group)
        dist.all_gather_object(of_ranks, sum(ties), group=group)
        before = sum(of_ranks[: dist.get_rank(group)])
    marked = []
    for key, num_ties in zip(keys, ties, strict=True):
        chosen = key < threshold
        take = min(max(wanted - before, 0), num_ties)
        if take == num_ties:
            chosen |= key == threshold
        elif take:
            chosen.view(-1)[(key == threshold).flatten().nonzero()[:take, 0]] = True
        before += num_ties
        marked.append(chosen)
    return marked


def exchanged(
    kept: Tensor, scores: Tensor, gradients: Tensor, share: float, group: Any = None
) -> tuple[Tensor, Tensor]:
    """Exchanges kept weights of the lowest scores for as many others of the largest gradients.

    What goes may come back at once, where its gradient is among the largest, as in RigL.

    Args:
        kept: (R, in), bool; like the others on each rank its rows.
        scores: (R, in), float32, not negative.
        gradients: (R, in), finite.
        share: of what is kept.
        group: the ranks that hold parts; None where this process holds all.

    Returns:
        Two bool tensors (R, in): what is left, and what comes.
    """
    num_kept = kept.sum()
    if group is not None:
        reduce_sum(num_kept, group)
    count = round(share * int(num_kept))
    goes = lowest([sort_keys(scores, None).masked_fill_(~kept, LAST)], count, group)[0]
    left = kept & ~goes
    keys = LAST - sort_keys(gradients, None)
    return left, lowest([keys.masked_fill_(left, LAST)], count, group)[0]


def lowest_in_rows(keys: Tensor, count: int, num_rows: int, first_row: int) -> Tensor:
    """Marks the lowest keys of each row, equally many in all rows, so that a whole matrix has exactly `count`.

    Args:
        keys: (R, in), this rank's rows.
        count: of the whole matrix; where rows do not divide it, the first ones have one more.
        num_rows: of the whole matrix.
        first_row: this rank's first.

    Returns:
        (R, in), bool.
    """
    a_row, more = divmod(count, num_rows)
    split = min(max(more - first_row, 0), len(keys))
    parts = [(keys[:split], a_row + 1), (keys[split:], a_row)]
    return torch.cat([_lowest_of_each(rows, k) for rows, k in parts])


def _lowest_of_each(rows: Tensor, count: int) -> Tensor:
    marked = torch.zeros_like(rows, dtype=torch.bool)
    if count == 0 or rows.numel() == 0:
        return marked
    return marked.scatter_(1, rows.argsort(dim=1, stable=True)[:, :count], True)
