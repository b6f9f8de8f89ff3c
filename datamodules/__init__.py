"""What a model learns from; each DataModule plugs into any LightningModule."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datamodules.errors import DataError as DataError
    from datamodules.instruction import InstructionDataModule as InstructionDataModule
    from datamodules.preference import PreferenceDataModule as PreferenceDataModule
    from datamodules.pretraining import TextDataModule as TextDataModule
    from datamodules.prompts import PromptDataModule as PromptDataModule
    from datamodules.records.record_source import RecordSource as RecordSource
    from datamodules.records.text_source import TextSource as TextSource
    from datamodules.streaming.datamodule import StreamingTextDataModule as StreamingTextDataModule
    from datamodules.streaming.mixed.datamodule import MixedStreamingTextDataModule as MixedStreamingTextDataModule
    from datamodules.streaming.watched import WatchedTextDataModule as WatchedTextDataModule
    from datamodules.synthetic.datamodule import SyntheticDataModule as SyntheticDataModule
    from datamodules.synthetic.openai_engine import OpenAIEngine as OpenAIEngine

# Imported when asked for: the processes that tokenize import this package too, and have no use for Lightning.
_PLACES = {
    "DataError": "datamodules.errors",
    "InstructionDataModule": "datamodules.instruction",
    "MixedStreamingTextDataModule": "datamodules.streaming.mixed.datamodule",
    "OpenAIEngine": "datamodules.synthetic.openai_engine",
    "PreferenceDataModule": "datamodules.preference",
    "PromptDataModule": "datamodules.prompts",
    "RecordSource": "datamodules.records.record_source",
    "StreamingTextDataModule": "datamodules.streaming.datamodule",
    "SyntheticDataModule": "datamodules.synthetic.datamodule",
    "TextDataModule": "datamodules.pretraining",
    "TextSource": "datamodules.records.text_source",
    "WatchedTextDataModule": "datamodules.streaming.watched",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
