"""Exports: a trained model as the files that other programs load, proven to answer as the model that was trained."""

from llm_lightning.export.exporting import Outcome, Proof, export
from llm_lightning.export.targets import TARGETS, Wanted

__all__ = ["TARGETS", "Outcome", "Proof", "Wanted", "export"]
