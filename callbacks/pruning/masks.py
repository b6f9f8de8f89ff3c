"""Masks under the parameters' own names: what they zero, and how they are kept in a checkpoint."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from callbacks.errors import CallbackError
from callbacks.network import local
from callbacks.pruning.weights import reduce_sum, sharded_axis

# A weight that is zero, with moments that are zero, stays zero in these as long as its gradient is. Others may mix
# weights (Muon) or add something of their own, and are corrected after each step.
KEEPS_ZEROS = (
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
    torch.optim.SGD,
)


class Masks:
    """What is kept (True) of each parameter, on this rank; zeros elsewhere, in weights, gradients and moments.

    Args:
        parameters: by their own names: matrices (out, in) and biases (out,).

    Attributes:
        kept: by name, bool, of the shape of this rank's part or broadcast to it ((out, 1) keeps whole rows); a
            parameter of which nothing is pruned is not in it.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.kept: dict[str, Tensor] = {}

    def update(self, kept: Mapping[str, Tensor]) -> None:
        """Take new masks, which never give a weight back; on ranks that hold the same, the first one decides."""
        for name, mask in kept.items():
            if dist.is_initialized() and not isinstance(self.parameters[name], DTensor):
                bits = pack(mask).to(mask.device)
                dist.broadcast(bits, 0)
                mask = unpack(bits, mask.shape)
            self.kept[name] = mask

    def apply_to_weights(self) -> None:
        """Zero the weights."""
        self._multiply((p.detach(), n) for n, p in self.parameters.items())

    def apply_to_gradients(self) -> None:
        """Zero the gradients, where there are some."""
        self._multiply((p.grad, n) for n, p in self.parameters.items() if p.grad is not None)

    def apply_to_moments(self, optimizers: Iterable[Optimizer]) -> None:
        """Zero whatever the optimizers keep for each weight."""
        for optimizer in optimizers:
            for name, parameter in self.parameters.items():
                state = optimizer.state.get(parameter, {}) if name in self.kept else {}
                self._multiply(
                    (value, name)
                    for value in state.values()
                    if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point()
                )

    def apply_to_copies(self, copies: Mapping[nn.Parameter, Tensor]) -> None:
        """Zero what stands for these parameters elsewhere, such as their averages."""
        self._multiply((copies[p], n) for n, p in self.parameters.items() if p in copies)

    def _multiply(self, tensors: Iterable[tuple[Tensor, str]]) -> None:
        pairs = [(local(tensor), self.kept[name]) for tensor, name in tensors if name in self.kept]
        if pairs:
            # As bytes, which multiplies about three times as fast as by bools.
            masks = [mask.to(tensor.device).view(torch.uint8) for tensor, mask in pairs]
            torch._foreach_mul_([tensor for tensor, _ in pairs], masks)

    def to_devices(self) -> None:
        """Move the masks to where their parameters are."""
        for name, mask in self.kept.items():
            self.kept[name] = mask.to(local(self.parameters[name]).device)

    def num_pruned(self) -> int:
        """Numbers that are pruned, over all ranks that hold different ones."""
        whole, groups = 0, dict[Any, int]()
        for name, mask in self.kept.items():
            parameter: Any = self.parameters[name]
            part = local(parameter)
            count = int((~mask).sum()) * (part.numel() // max(mask.numel(), 1))
            axis = sharded_axis(parameter)
            if axis is None:
                whole += count
            else:
                group = parameter.device_mesh.get_group(axis)
                groups[group] = groups.get(group, 0) + count
        for group, count in groups.items():
            whole += int(reduce_sum(torch.tensor(count, device=part.device), group))
        return whole

    def state_dict(self) -> dict[str, Any]:
        """The masks of whole parameters, a bit a weight; every rank calls it."""
        state = {}
        for name, mask in self.kept.items():
            whole = self._whole(name, mask)
            state[name] = {"shape": list(whole.shape), "bits": pack(whole).cpu()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take masks over, also those of a run on another number of ranks.

        Raises:
            CallbackError: they are for other parameters.
        """
        for name, entry in state.items():
            parameter: Any = self.parameters.get(name)
            shape = torch.Size(entry["shape"])
            if parameter is None or torch.broadcast_shapes(shape, parameter.shape) != parameter.shape:
                raise CallbackError(
                    f"The checkpoint holds a mask of {name}, {tuple(shape)}, which these settings of Pruning do not "
                    "prune: give those it was made with, or start over by --resume false."
                )
            whole = unpack(entry["bits"], shape)
            self.kept[name] = _part_of(whole, parameter).to(local(parameter).device)

    def _whole(self, name: str, mask: Tensor) -> Tensor:
        parameter: Any = self.parameters[name]
        if not isinstance(parameter, DTensor):
            return mask
        return DTensor.from_local(
            mask, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
        ).full_tensor()


def _part_of(whole: Tensor, parameter: Any) -> Tensor:
    """This rank's rows of a whole mask."""
    axis = sharded_axis(parameter)
    if axis is None:
        return whole
    parts, rank = whole.chunk(parameter.device_mesh.size(axis)), parameter.device_mesh.get_local_rank(axis)
    return parts[rank].clone() if rank < len(parts) else whole[:0]


def pack(mask: Tensor) -> Tensor:
    """Eight bools a byte, first one lowest, as uint8 (ceil(n / 8),)."""
    flat = mask.flatten().to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (flat << torch.arange(8, dtype=torch.uint8, device=flat.device)).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: torch.Size) -> Tensor:
    """The mask of a shape that `pack` made bits of."""
    flags = (bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1
    return flags.flatten()[: shape.numel()].bool().view(shape)
