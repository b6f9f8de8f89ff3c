"""Optimizers that torch does not have in this form."""

from llm_lightning.optimizers.muon import Muon

__all__ = ["Muon"]
