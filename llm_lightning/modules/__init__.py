"""LightningModules, one objective a file."""

from llm_lightning.modules.pretraining import CausalPretraining

__all__ = ["CausalPretraining"]
