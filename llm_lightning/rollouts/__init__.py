"""Completions that a model writes, while it is trained or for data."""

from llm_lightning.rollouts.contract import AsynchronousEngine, Completion, EngineCallable, RolloutEngine
from llm_lightning.rollouts.local_engine import LocalEngine
from llm_lightning.rollouts.sampler import Sampler
from llm_lightning.rollouts.sampling import Key, Sampling
from llm_lightning.rollouts.served import ServedEngine
from llm_lightning.rollouts.speculation import DraftModel, PromptLookup, Speculation

__all__ = [
    "AsynchronousEngine", "Completion", "DraftModel", "EngineCallable", "Key", "LocalEngine", "PromptLookup",
    "RolloutEngine", "Sampler",
    "Sampling", "ServedEngine", "Speculation",
]  # fmt: skip
