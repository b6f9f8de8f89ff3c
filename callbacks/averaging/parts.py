"""A weight on one rank: the part that it holds, and what a checkpoint holds of it."""

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from callbacks.errors import CallbackError


def checked(parameters: dict[str, nn.Parameter], who: str) -> dict[str, nn.Parameter]:
    """The parameters, where numbers in them can be averaged.

    Args:
        parameters: by name.
        who: is to average them, for the message.

    Raises:
        CallbackError: one is quantized.
    """
    for name, parameter in parameters.items():
        is_plain = type(parameter.data) is Tensor or isinstance(parameter, DTensor)
        if not (is_plain and parameter.is_floating_point()):
            raise CallbackError(f"{who}: {name} is quantized ({parameter.dtype}) and has no average: leave {who} out.")
    return parameters


def reshard(module: nn.Module) -> None:
    """Free what FSDP2's forward passes left gathered: the weights are then those of `module.parameters()`, and the
    next pass gathers what they are by then.
    """
    for each in module.modules():
        if isinstance(each, FSDPModule):
            each.reshard()


def whole_of(part: Tensor, parameter: nn.Parameter) -> Tensor:
    """What a checkpoint holds: a sharded tensor like the parameter where that is one, the tensor itself else."""
    if not isinstance(parameter, DTensor):
        return part
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(part, mesh, placements, shape=parameter.shape, stride=parameter.stride())


def part_of(held: Tensor, parameter: nn.Parameter) -> Tensor:
    """This rank's part, on the parameter's device, of what a checkpoint held, sharded or not; a copy."""
    if isinstance(held, DTensor):
        held = held.to_local()
    elif isinstance(parameter, DTensor):
        # Each rank has all of it, so that nothing is sent.
        mesh, placements = parameter.device_mesh, parameter.placements
        held = distribute_tensor(held, mesh, placements, src_data_rank=None).to_local()
    with torch.no_grad():
        return held.to(parameter.device, copy=True)
