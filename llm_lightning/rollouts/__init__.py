"""Answers that a model writes, while it is trained or for data."""

from llm_lightning.rollouts.engine import Completion, Key, RolloutEngine
from llm_lightning.rollouts.local_engine import LocalEngine
from llm_lightning.rollouts.sampler import Sampler
from llm_lightning.rollouts.sampling import Sampling

__all__ = ["Completion", "Key", "LocalEngine", "RolloutEngine", "Sampler", "Sampling"]
