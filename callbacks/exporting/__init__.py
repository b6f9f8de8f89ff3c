"""Exports at the end of a fit."""

from callbacks.exporting.export import Export

__all__ = ["Export"]
