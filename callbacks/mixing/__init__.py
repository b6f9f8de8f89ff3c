"""Which share each source of a mixture has, where that follows from how the run goes."""

from callbacks.mixing.loss_weighted import LossWeightedMixture

__all__ = ["LossWeightedMixture"]
