"""The keys, or the values, of all slots: as attention computed them, or rounded to 8 bits."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

KVCacheDtype: TypeAlias = Literal["auto", "int8"]
"""`auto`: what attention computes in. `int8`: a byte a number, and a scale for each token's head."""


class Cache:
    """For each layer (S, KV heads, room, D): a row for each token of a slot, and some not used yet."""

    def __init__(self) -> None:
        self.layers: dict[int, Tensor] = {}

    def __contains__(self, layer: int) -> bool:
        return layer in self.layers

    def write(self, layer: int, slots: Tensor, places: Tensor, fresh: Tensor) -> None:
        """Put (N, KV heads, D) at a place of a slot each, (N,)."""
        self.layers[layer][slots, :, places] = fresh

    def read(self, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """(S, KV heads, room, D), and what each row is to be multiplied by, (S, KV heads, room), None for 1."""
        return self.layers[layer].to(dtype), None

    def admit(self, layer: int, fresh: Tensor, room: int) -> None:
        """Open slots behind the others, (n, KV heads, tokens, D)."""
        self.layers[layer] = _below(self.layers.get(layer), fresh, room)

    def keep(self, slots: Tensor, room: int) -> None:
        """Give up all slots but these, and what is behind `room`."""
        for layer, tensor in self.layers.items():
            self.layers[layer] = tensor[:, :, :room].index_select(0, slots)

    def grow(self, room: int) -> None:
        """Make room for so many tokens a slot."""
        for layer, tensor in self.layers.items():
            if tensor.shape[2] != room:
                self.layers[layer] = F.pad(tensor, (0, 0, 0, room - tensor.shape[2]))

    @property
    def num_bytes(self) -> int:
        """Of all layers."""
        return sum(tensor.nbytes for tensor in self.layers.values())


class Int8Cache:
    """As `Cache`; each row is its greatest magnitude over 127 times whole numbers from -127 to 127.

    A scale for each token and head can be written as the token comes, while one for each channel, which fits keys a
    little better (KIVI, Liu et al., arXiv:2402.02750), needs groups of tokens. At 8 bits that makes no difference.
    """

    def __init__(self) -> None:
        self.numbers, self.scales = Cache(), Cache()

    def __contains__(self, layer: int) -> bool:
        return layer in self.numbers

    def write(self, layer: int, slots: Tensor, places: Tensor, fresh: Tensor) -> None:
        """See `Cache`."""
        numbers, scales = _rounded(fresh)
        self.numbers.write(layer, slots, places, numbers)
        self.scales.write(layer, slots, places, scales)

    def read(self, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """See `Cache`; the network's product is with whole numbers, and the scales come behind it, where fewer are."""
        return self.numbers.read(layer, dtype)[0], self.scales.layers[layer].squeeze(-1)

    def admit(self, layer: int, fresh: Tensor, room: int) -> None:
        """See `Cache`."""
        numbers, scales = _rounded(fresh)
        self.numbers.admit(layer, numbers, room)
        self.scales.admit(layer, scales, room)

    def keep(self, slots: Tensor, room: int) -> None:
        """See `Cache`."""
        self.numbers.keep(slots, room)
        self.scales.keep(slots, room)

    def grow(self, room: int) -> None:
        """See `Cache`."""
        self.numbers.grow(room)
        self.scales.grow(room)

    @property
    def num_bytes(self) -> int:
        """Of all layers."""
        return self.numbers.num_bytes + self.scales.num_bytes


CACHES: Mapping[KVCacheDtype, Any] = {"auto": Cache, "int8": Int8Cache}


def _rounded(fresh: Tensor) -> tuple[Tensor, Tensor]:
    scales = fresh.float().abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return (fresh.float() / scales).round().to(torch.int8), scales


def _below(former: Tensor | None, fresh: Tensor, room: int) -> Tensor:
    """Slots under slots, all with as much room as the longer ones have."""
    room = room if former is None else max(room, former.shape[2])
    parts = [fresh] if former is None else [former, fresh]
    parts = [F.pad(each, (0, 0, 0, room - each.shape[2])) for each in parts]
    return parts[0] if former is None else torch.cat(parts)
