"""What is kept for validation: a share of the documents, decided by what they say alone."""

from collections.abc import Iterable

import numpy as np


def held_out(hashes: Iterable[np.ndarray], count: int, share: float) -> tuple[int, tuple[int, ...]]:
    """The hashes that validate: the smallest ones, up to a point, but for those of which there are too many copies.

    Copies stay together, so a hash that many documents have would take far more than the share: what is more than a
    tenth of it is passed over where it does not fit. Where nothing fits, the hash with the fewest copies is taken. All
    hashes are read, only the smallest are held.

    Args:
        hashes: uint64 of all documents, in pieces.
        count: how many there are.
        share: of them.

    Returns:
        The largest hash that validates, -1 for none; and the smaller ones that do not.
    """
    if share <= 0 or not count:
        return -1, ()
    wanted = max(1, round(share * count))
    large = max(1, wanted // 10)
    room = wanted + count // large + 1  # so many hashes at the most can be passed over
    values, copies = np.empty(0, np.uint64), np.empty(0, np.int64)
    for some in hashes:
        new, new_copies = np.unique(some, return_counts=True)
        values, places = np.unique(np.concatenate([values, new]), return_inverse=True)
        copies = np.bincount(places, np.concatenate([copies, new_copies])).astype(np.int64)
        values, copies = values[:room], copies[:room]
    end = int(np.searchsorted(np.cumsum(copies), wanted)) + 1
    if copies[:end].max() <= large:
        return int(values[:end][-1]), ()
    taken, passed_over, point = 0, [], -1
    for value, number in zip(values.tolist(), copies.tolist(), strict=True):
        if number <= large or taken + number <= wanted:
            taken, point = taken + number, value
        else:
            passed_over.append(value)
        if taken >= wanted:
            break
    if not taken:
        point = int(values[copies.argmin()])
    return point, tuple(value for value in passed_over if value < point)


def unlike_share(share: float, num_held_out: int, count: int) -> str | None:
    """A word where what validates is not half of the share, or more than twice as much; None else."""
    wanted = max(1, share * count)
    if not share or wanted / 2 <= num_held_out <= 2 * wanted:
        return None
    return (
        f"val_share={share}: {num_held_out:,} of {count:,} validate ({num_held_out / count:.1%}), as those that begin"
        " alike stay on one side; name a val_path to choose them yourself"
    )
