"""Strategies and accelerators that Lightning lacks, by the names that `trainer.strategy` takes."""

from lightning.pytorch.strategies import StrategyRegistry

from llm_lightning.strategies.fsdp2 import FSDP2Strategy

__all__ = ["FSDP2Strategy"]

StrategyRegistry.register("fsdp2", FSDP2Strategy, description="Weights in parts on all ranks, by FSDP2.", override=True)
