"""What a kind of export has to do, and what most of them do alike."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_lightning.export.proof.asking import OtherEngine
from llm_lightning.export.proof.limits import Limits
from llm_lightning.export.source import Source


class Target(ABC):
    """A kind of files that another program loads.

    Attributes:
        formats: what its weights can be, and how far each may be from the trained model.
        script: of `answers/`, which asks what was written.
    """

    formats: Mapping[str, Limits]
    script: str

    @abstractmethod
    def default(self, source: Source) -> str:
        """The format where none is named."""

    @abstractmethod
    def check(self, source: Source, form: str) -> None:
        """Raise `UserError` for what it cannot hold, before any work."""

    @abstractmethod
    def write(self, source: Source, form: str, folder: Path) -> None:
        """Fill a new folder; raises `UserError` where what is found on the way cannot be written rightly."""

    def unsaid(self, source: Source) -> dict[str, str]:
        """Texts of the proof whose token ids may differ, each with the reason, which users are told; mostly none."""
        return {}

    def others(self, source: Source, folder: Path) -> list[OtherEngine]:
        """Engines beside `script`'s that are asked too, those that are installed; mostly none."""
        return []

    @abstractmethod
    def questions(self, folder: Path) -> dict[str, Any]:
        """What the script has to know of a folder that was written."""

    @abstractmethod
    def python(self) -> Path | str:
        """The interpreter that has the engine; raises `UserError` where it is not installed."""
