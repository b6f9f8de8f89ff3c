"""A weight on one rank: the part that it holds, and what a checkpoint holds of it."""

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from callbacks.contract import KeepsShards, offered
from callbacks.errors import CallbackError


def check_strategy(trainer: Trainer, who: str) -> None:
    """Raise `CallbackError` under a strategy that has the weights to itself."""
    if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy):
        raise CallbackError(f"{who} cannot find single weights under DeepSpeed or FSDP 1: use ddp or fsdp2.")


def trained_parameters(trainer: Trainer, who: str) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by their names in the module, where a copy of them can be kept beside them.

    Args:
        trainer: of the run.
        who: is to keep a copy, for the message.

    Raises:
        CallbackError: a parameter is quantized, or is sharded under a strategy whose checkpoints hold no such copies.
    """
    module = trainer.lightning_module
    reshard(module)
    parameters = {name: each for name, each in module.named_parameters() if each.requires_grad}
    for name, parameter in parameters.items():
        is_plain = type(parameter.data) is Tensor or isinstance(parameter, DTensor)
        if not (is_plain and parameter.is_floating_point()):
            raise CallbackError(
                f"{who}: {name} is quantized ({parameter.dtype}), and there is no reckoning with its numbers: leave "
                f"{who} out."
            )
    is_sharded = any(isinstance(parameter, DTensor) for parameter in parameters.values())
    if is_sharded and offered(trainer.strategy, KeepsShards) is None:
        raise CallbackError(
            f"{who}: {type(trainer.strategy).__name__} keeps nothing sharded beside the weights in its checkpoints: "
            "use strategy fsdp2."
        )
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


def summed_over_ranks(trainer: Trainer, sums: dict[nn.Parameter, Tensor]) -> Tensor:
    """() the sum over whole parameters of what each rank has summed over its parts of them (each ()); every rank calls
    it.
    """
    shares = [value / _num_holders(parameter, trainer.world_size) for parameter, value in sums.items()]
    return trainer.strategy.reduce(torch.stack(shares).sum(), reduce_op="sum")


def _num_holders(parameter: nn.Parameter, world_size: int) -> int:
    """On how many ranks each number of a parameter lies."""
    if not isinstance(parameter, DTensor):
        return world_size
    mesh = parameter.device_mesh
    num_parts = 1
    for dim, placement in enumerate(parameter.placements):
        num_parts *= mesh.size(dim) if placement.is_shard() else 1
    return world_size // num_parts
