"""Averages of the weights that a run goes through."""

from callbacks.averaging.averages import EMA, SWA
from callbacks.averaging.callback import WeightAverage

__all__ = ["EMA", "SWA", "WeightAverage"]
