"""What callbacks ask of a network, whatever adapter or strategy is around it."""

import torch
from torch.distributed.tensor import DTensor


def is_sharded(network: torch.nn.Module) -> bool:
    """Whether ranks hold different parts of the weights (FSDP2 and tensor parallelism, or DeepSpeed's ZeRO 3)."""
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in network.parameters())
