"""Noise that keeps a network from learning its data by heart."""

from callbacks.regularization.layer_drop import LayerDrop
from callbacks.regularization.neftune import NEFTune
from callbacks.regularization.stochastic_depth import StochasticDepth

__all__ = ["LayerDrop", "NEFTune", "StochasticDepth"]
