"""Mistakes in a callback's settings."""


class CallbackError(ValueError):
    """A callback cannot do what its settings ask for; the message names the setting and the way out."""
