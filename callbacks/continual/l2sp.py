"""Every weight alike is drawn to its start."""

from typing_extensions import override

from callbacks.continual.near_start import NearStart


class L2SP(NearStart):
    """Draws all trained weights to those that the run began with (L2 to the starting point, arXiv:1802.01483); see
    `NearStart` for how. Of an adapter these are its own weights, B's 0 among them.

    Args:
        strength: Of the pull; see `NearStart`.

    Raises:
        CallbackError: See `NearStart`.
    """

    @override
    def importance(self, name: str) -> float:
        return 1.0
