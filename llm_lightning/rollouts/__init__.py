"""Completions that a model writes, while it is trained or for data."""

from llm_lightning.rollouts.contract import Completion, EngineCallable, RolloutEngine
from llm_lightning.rollouts.local_engine import LocalEngine
from llm_lightning.rollouts.sampler import Sampler
from llm_lightning.rollouts.sampling import Key, Sampling

__all__ = ["Completion", "EngineCallable", "Key", "LocalEngine", "RolloutEngine", "Sampler", "Sampling"]
