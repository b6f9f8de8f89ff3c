"""Completions from a server over HTTP, which gets the policy's weights as an adapter."""

from llm_lightning.rollouts.served.engine import ServedEngine

__all__ = ["ServedEngine"]
