"""A name for all the numbers of a network's weights, the same however many ranks share them."""

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

AT_ONCE = 2**20
"""Numbers: what is worked out of them stays in a CPU's caches, and fills a GPU."""

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
FACTORS = (-7046029254386353131, -4658895280553007687)
"""Odd numbers of 64 bits, those of splitmix64 (Steele et al., 2014)."""


def content_key(weights: Mapping[str, Tensor], add_up: Callable[[Tensor], Tensor] | None = None) -> str:
    """The name. It differs where one bit of one number does, which samples of the weights would not tell.

    Of each weight the bits of its numbers are added up modulo 2^64, each multiplied by an odd number that belongs to
    its place. Parts of a weight can be added up on ranks of their own; no rank ever holds all.

    Args:
        weights: by name; cut along their first dimension where they are `DTensor`s.
        add_up: over ranks, where they share weights.
    """
    digest, sums = hashlib.blake2b(digest_size=16), []
    for name, weight in sorted(weights.items()):
        described = f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode()
        digest.update(described)
        seed = int.from_bytes(hashlib.blake2b(described, digest_size=8).digest(), "little", signed=True)
        sums.append(_sum(weight, seed))
    totals = torch.stack(sums)
    digest.update((totals if add_up is None else add_up(totals)).cpu().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _sum(weight: Tensor, seed: int) -> Tensor:
    """() int64, of this rank's part."""
    start = 0
    if isinstance(weight, DTensor):
        rows = -(-weight.shape[0] // weight.device_mesh.size())  # as torch.chunk cuts them
        start = weight.device_mesh.get_local_rank() * rows * weight[:1].numel()
        weight = weight.to_local()
    bits = weight.detach().contiguous().flatten().view(INTEGERS[weight.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for first in range(0, len(bits), AT_ONCE):
        part = bits[first : first + AT_ONCE]
        place = torch.arange(start + first, start + first + len(part), device=bits.device)
        mixed = place * FACTORS[0] + seed
        mixed = (mixed ^ (mixed >> 29)) * FACTORS[1]
        total += ((mixed | 1) * part).sum()
    return total
