"""What keeps a network that learns on from forgetting what it knew."""

from callbacks.continual.ewc import EWC
from callbacks.continual.l2sp import L2SP
from callbacks.continual.near_start import NearStart

__all__ = ["EWC", "L2SP", "NearStart"]
