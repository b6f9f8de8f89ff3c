"""Libraries that only filters need."""

from importlib.util import find_spec

from datamodules.errors import DataError


def needs(library: str, who: str) -> None:
    """Raises `DataError` where the library is missing, and says how to get it."""
    if find_spec(library) is None:
        raise DataError(
            f"filters: {who} needs {library}, which is not installed: pip install 'llm-lightning[synthetic]'"
        )
