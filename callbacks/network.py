"""What callbacks ask of a network, whatever adapter or strategy is around it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def base_network(network: Any) -> Any:
    """The transformers network inside a `peft.PeftModel`, or the network itself."""
    return network.get_base_model() if hasattr(network, "get_base_model") else network


def has_adapter(network: Any) -> bool:
    """Whether peft has put an adapter into it."""
    return hasattr(network, "peft_config")


def base_layer(layer: Any) -> Any:
    """The layer itself under what peft put around it."""
    return getattr(layer, "base_layer", layer)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The network's blocks, first to last; of several stacks, those of the largest. Empty where none is found."""
    stacks = [stack for stack in network.modules() if isinstance(stack, nn.ModuleList)]
    alike = [stack for stack in stacks if len({type(block) for block in stack}) == 1]
    return list(max(alike, key=lambda stack: sum(weight.numel() for weight in stack.parameters()), default=[]))


def is_sharded(network: nn.Module) -> bool:
    """Whether ranks hold different parts of the weights (FSDP2 and tensor parallelism, or DeepSpeed's ZeRO 3)."""
    return any(isinstance(weight, DTensor) or is_zero_3(weight) for weight in network.parameters())


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, as a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_zero_3(weight: nn.Parameter) -> bool:
    """Whether DeepSpeed's ZeRO 3 holds the weight, and gathers it only where it is used."""
    return hasattr(weight, "ds_id")


def dtype_of(network: nn.Module) -> torch.dtype:
    """Of the network's floating point weights."""
    return next(weight.dtype for weight in network.parameters() if weight.is_floating_point())


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in eval mode, and eager: a compiled one would be compiled anew for every length."""
    was_training = network.training
    network.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        network.train(was_training)
