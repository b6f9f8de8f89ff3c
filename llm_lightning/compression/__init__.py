"""The search for the pruning and the quantization that together hold a budget best."""

from llm_lightning.compression.search import CompressionSearch

__all__ = ["CompressionSearch"]
