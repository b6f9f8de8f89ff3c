"""A folder for onnxruntime-genai, written by its own builder."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_lightning.errors import UserError
from llm_lightning.export.environments import python_of
from llm_lightning.export.proof.asking import last_error, run_apart
from llm_lightning.export.proof.limits import EXACT, FOUR_BITS, Limits
from llm_lightning.export.source import Source
from llm_lightning.export.target import Target

ENVIRONMENT = "onnx-genai"


class OnnxGenai(Target):
    """ONNX for onnxruntime-genai, in an environment of its own. Its builder has the network in memory once."""

    formats: Mapping[str, Limits] = {"int4": FOUR_BITS, "fp32": EXACT}
    script = "genai_answers"

    def default(self, source: Source) -> str:
        """What it is taken for: small and fast on CPUs."""
        return "int4"

    def check(self, source: Source, form: str) -> None:
        """Raises `UserError` for a reward model."""
        if source.is_reward_model:
            raise UserError(
                "--to onnx-genai: it only writes tokens, a reward model's head has no place. Take --to merged."
            )

    def write(self, source: Source, form: str, folder: Path) -> None:
        """By the builder, in a process of its own; raises `UserError` with what it said where it fails."""
        cache = folder / ".cache"
        command = [
            str(self.python()), "-s", "-m", "onnxruntime_genai.models.builder", "-i", str(source.folder.resolve()),
            "-o", str(folder.resolve()), "-p", form, "-e", "cpu", "-c", str(cache.resolve()),
        ]  # fmt: skip
        done = run_apart(command, folder)
        shutil.rmtree(cache, ignore_errors=True)
        if done.returncode:
            raise UserError(
                f"--to onnx-genai: its builder could not write a {source.config.model_type}: {last_error(done)}"
            )

    def questions(self, folder: Path) -> dict[str, Any]:
        """Where it lies."""
        return {"path": str(folder)}

    def python(self) -> Path:
        """That of its environment."""
        return python_of(ENVIRONMENT)
