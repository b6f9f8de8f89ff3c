"""Where metrics go."""

from llm_lightning.loggers.metrics_file import MetricsFile
from llm_lightning.loggers.wandb import WandbRun

__all__ = ["MetricsFile", "WandbRun"]
