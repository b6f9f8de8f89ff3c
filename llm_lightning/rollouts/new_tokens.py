"""Where the tokens of a forward pass over slots go: one to each, or a few to each, one slot's after the other's."""

from typing import NamedTuple

import torch
from torch import Tensor


class NewTokens(NamedTuple):
    """N tokens for S slots.

    Args:
        rows: (N,) the slot of each.
        offsets: (N,) which of its slot's new tokens it is.
        places: (N,) its position.
        counts: (S,) new tokens of each slot.
        most: of a slot.
        is_packed: whether the network reads them as one row, (1, N), and not as (S, 1).
    """

    rows: Tensor
    offsets: Tensor
    places: Tensor
    counts: Tensor
    most: int
    is_packed: bool

    @classmethod
    def one_each(cls, lengths: Tensor) -> "NewTokens":
        """One for each slot, (S,) long so far."""
        rows = torch.arange(len(lengths), device=lengths.device)
        return cls(rows, torch.zeros_like(rows), lengths, torch.ones_like(rows), 1, is_packed=False)

    @classmethod
    def ragged(cls, lengths: Tensor, counts: Tensor) -> "NewTokens":
        """So many for each slot, (S,); there may be slots that get none."""
        rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        offsets = torch.arange(len(rows), device=counts.device) - (counts.cumsum(0) - counts)[rows]
        return cls(rows, offsets, lengths[rows] + offsets, counts, int(counts.max()), is_packed=True)

    def by_slot(self, packed: Tensor) -> Tensor:
        """(S, heads, most, D) from (1, heads, N, D); zeros where a slot has fewer."""
        if not self.is_packed:
            return packed
        room = packed.new_zeros(len(self.counts), self.most, packed.shape[1], packed.shape[3])
        room[self.rows, self.offsets] = packed[0].transpose(0, 1)
        return room.transpose(1, 2)

    def as_read(self, by_slot: Tensor) -> Tensor:
        """From (S, heads, most, D) to what follows attention, (1, N, heads, D) or (S, 1, heads, D)."""
        by_slot = by_slot.transpose(1, 2)
        return by_slot[self.rows, self.offsets][None] if self.is_packed else by_slot
