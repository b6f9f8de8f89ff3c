"""What is raised when the user's data or data settings cannot be used."""


class DataError(ValueError):
    """A mistake in the data or its settings; the message names the field or file, the value, and the way out."""
