"""Strategies and accelerators that Lightning lacks, by the names that `trainer.strategy` and `.accelerator` take."""

from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from llm_lightning.strategies.deepspeed import ZeROStrategy
from llm_lightning.strategies.fsdp2 import FSDP2Strategy
from llm_lightning.strategies.tpu import TorchTPUAccelerator

__all__ = ["FSDP2Strategy", "TorchTPUAccelerator", "ZeROStrategy"]

StrategyRegistry.register(
    "fsdp2", FSDP2Strategy, description="Weights sharded over all ranks, by FSDP2.", override=True
)
AcceleratorRegistry.register(
    TorchTPUAccelerator.name(), TorchTPUAccelerator, description="TPUs by torch_tpu.", override=True
)
