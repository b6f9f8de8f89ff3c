"""How many tokens a step has, where that changes in a run."""

from callbacks.batch_size.warmup import BatchSizeWarmup

__all__ = ["BatchSizeWarmup"]
