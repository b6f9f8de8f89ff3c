"""What a model learns from; each DataModule plugs into any LightningModule."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datamodules.errors import DataError as DataError
    from datamodules.pretraining import TextDataModule as TextDataModule
    from datamodules.sources import Source as Source

# Imported when asked for: the processes that tokenize import this package too, and have no use for Lightning.
_PLACES = {
    "DataError": "datamodules.errors",
    "Source": "datamodules.sources",
    "TextDataModule": "datamodules.pretraining",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
