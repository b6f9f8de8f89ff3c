"""Adapters: peft's methods and bottlenecks, their special needs, and merging."""

from llm_lightning.models.adapters.bottleneck import BottleneckConfig, load_bottleneck

__all__ = ["BottleneckConfig", "load_bottleneck"]
