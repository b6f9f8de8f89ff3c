"""A model repository for Triton's Python backend, with what starts and asks it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_lightning.export.environments import ENVIRONMENTS, python_of
from llm_lightning.export.merged import Merged
from llm_lightning.export.proof.limits import EXACT, HALF, Limits
from llm_lightning.export.source import Source
from llm_lightning.export.target import Target

ENVIRONMENT = "triton"
REPOSITORY = Path(__file__).with_name("repository")
BESIDE = ("Dockerfile", "compose.yaml", "client.py")
VERSION = "1"


class Triton(Target):
    """A repository for NVIDIA Triton Inference Server: prompts in, text out; reward models too."""

    formats: Mapping[str, Limits] = {"float32": EXACT, "bfloat16": HALF}
    script = "triton_answers"

    def default(self, source: Source) -> str:
        """The model's own dtype; the server computes in it."""
        return source.dtype if source.dtype in self.formats else "float32"

    def check(self, source: Source, form: str) -> None:
        """Whatever transformers loads, it can hold."""

    def write(self, source: Source, form: str, folder: Path) -> None:
        """The model folder as version 1 of a Triton model, and an example of a container beside the repository."""
        name, part = ("reward_model", "scorer") if source.is_reward_model else ("language_model", "generator")
        model = folder / "models" / name
        version = model / VERSION
        version.mkdir(parents=True)
        Merged().write(source, form, version)
        shutil.copyfile(REPOSITORY / f"{part}.pbtxt", model / "config.pbtxt")
        shutil.copyfile(REPOSITORY / f"{part}.py", version / "model.py")
        shutil.copyfile(REPOSITORY / "prompts.py", version / "prompts.py")
        for file in BESIDE:
            shutil.copyfile(REPOSITORY / file, folder / file)
        needed = [each for each in ENVIRONMENTS[ENVIRONMENT] if each.startswith(("torch=", "transformers=", "numpy="))]
        (folder / "requirements.txt").write_text("".join(f"{each}\n" for each in needed), encoding="utf-8")

    def questions(self, folder: Path) -> dict[str, Any]:
        """The repository, its model, and the most tokens that it takes."""
        (model,) = (folder / "models").iterdir()
        config = json.loads((model / VERSION / "config.json").read_text(encoding="utf-8"))
        return {
            "repository": str(folder / "models"),
            "model": model.name,
            "num_positions": config.get("max_position_embeddings") or 2**30,
        }

    def python(self) -> Path:
        """That of its environment."""
        return python_of(ENVIRONMENT)
