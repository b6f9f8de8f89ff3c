"""What a model can be exported to."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llm_lightning.errors import UserError
from llm_lightning.export.gguf.target import Gguf
from llm_lightning.export.merged import Merged
from llm_lightning.export.onnx_genai import OnnxGenai
from llm_lightning.export.onnx_optimum import OnnxOptimum
from llm_lightning.export.proof.asking import OtherEngine
from llm_lightning.export.proof.limits import Limits
from llm_lightning.export.source import Source
from llm_lightning.export.triton.target import Triton


class Target(Protocol):
    """A kind of files that another program loads.

    Attributes:
        formats: what its weights can be, and how far each may be from the trained model.
        script: of `answers/`, which asks what was written.
    """

    formats: Mapping[str, Limits]
    script: str

    def default(self, source: Source) -> str:
        """The format where none is named."""

    def check(self, source: Source, form: str) -> None:
        """Raise `UserError` for what it cannot hold, before any work."""

    def write(self, source: Source, form: str, folder: Path) -> None:
        """Fill a new folder; raises `UserError` where what is found on the way cannot be written rightly."""

    def unsaid(self, source: Source) -> dict[str, str]:
        """Texts of the proof whose token ids may differ, each with the reason, which users are told."""

    def others(self, source: Source, folder: Path) -> list[OtherEngine]:
        """Engines beside `script`'s that are asked too, those that are installed."""

    def questions(self, folder: Path) -> dict[str, Any]:
        """What the script has to know of a folder that was written."""

    def python(self) -> Path | str:
        """The interpreter that has the engine; raises `UserError` where it is not installed."""


TARGETS: Mapping[str, Target] = {
    "merged": Merged(),
    "gguf": Gguf(),
    "onnx-genai": OnnxGenai(),
    "onnx-optimum": OnnxOptimum(),
    "triton": Triton(),
}


@dataclass(frozen=True)
class Wanted:
    """One export: a target, and a format of it (None for the target's default)."""

    target: str
    form: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Wanted":
        """From TARGET or TARGET:FORMAT; raises `UserError` for one that there is not."""
        target, colon, form = text.partition(":")
        if target not in TARGETS:
            raise UserError(f"--to {text}: there is no target {target!r}; there are {', '.join(TARGETS)}.")
        if colon and form not in TARGETS[target].formats:
            raise UserError(
                f"--to {text}: {target} has no format {form!r}; it has {', '.join(TARGETS[target].formats)}."
            )
        return cls(target, form or None)
