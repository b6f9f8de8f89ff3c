"""DeepSpeed runs on CPU ranks once Lightning's checks for CUDA are out of its way."""

import lightning.pytorch.strategies.deepspeed as strategy
import torch
from lightning.pytorch.accelerators import CPUAccelerator


def allow() -> None:
    strategy.CUDAAccelerator = CPUAccelerator
    strategy._validate_device_index_selection = lambda devices: None
    strategy.DeepSpeedStrategy.root_device = property(lambda self: torch.device("cpu", self.local_rank))
