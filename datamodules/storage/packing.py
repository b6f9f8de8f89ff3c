"""Best-fit packing: pieces of documents into rows of equal length, so that little is padded and nothing cropped.

The idea, best-fit-decreasing over document lengths: Ding et al., "Fewer Truncations Improve Language Modeling", 2024.
"""

import numpy as np

WINDOW = 1 << 17  # pieces packed at once: enough for rows to fill up, and a few MB whatever the size of the corpus


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Packs pieces into rows, longest first, each into the fullest row that still takes it.

    Pieces of equal length are placed together, so the work grows with the number of different lengths rather than
    with the number of pieces.

    Args:
        lengths: (N,) int, each in 1..capacity.
        capacity: tokens of a row.

    Returns:
        (N,) int64, the row of each piece; and the number of rows.
    """
    row_of = np.empty(len(lengths), np.int64)
    num_rows = 0
    open_rows: dict[int, np.ndarray] = {}  # room left -> the rows that have just that much
    rooms = 0  # bit r is set where there are rows with room r: the smallest that fits is one bit operation away
    order = np.argsort(-lengths, kind="stable")
    for pieces in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1) if len(order) else ():
        length = int(lengths[pieces[0]])
        while len(pieces):
            if fitting := rooms >> length:
                room = length + (fitting & -fitting).bit_length() - 1
                rows = open_rows.pop(room)
                rooms ^= 1 << room
            else:
                room = capacity
                rows = np.arange(num_rows, num_rows - (-len(pieces) // (room // length)))
                num_rows += len(rows)
            each = room // length  # pieces that a row takes
            needed = -(-len(pieces) // each)
            if needed < len(rows):
                open_rows[room] = rows[needed:]
                rooms |= 1 << room
                rows = rows[:needed]
            placed = min(len(pieces), len(rows) * each)
            row_of[pieces[:placed]] = np.repeat(rows, each)[:placed]
            pieces = pieces[placed:]
            in_last = placed - (len(rows) - 1) * each  # the last row may have taken fewer
            for group, taken in ((rows[:-1], each), (rows[-1:], in_last)):
                left = room - taken * length
                if len(group) and left:
                    open_rows[left] = np.concatenate([open_rows[left], group]) if left in open_rows else group
                    rooms |= 1 << left
    return row_of, num_rows
