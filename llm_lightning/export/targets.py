"""What a model can be exported to."""

from collections.abc import Mapping
from dataclasses import dataclass

from llm_lightning.errors import UserError
from llm_lightning.export.gguf.target import Gguf
from llm_lightning.export.merged import Merged
from llm_lightning.export.onnx_genai import OnnxGenai
from llm_lightning.export.onnx_optimum import OnnxOptimum
from llm_lightning.export.target import Target
from llm_lightning.export.triton.target import Triton

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
