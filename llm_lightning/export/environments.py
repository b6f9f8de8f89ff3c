"""Tools whose pins exclude ours, or that few users need: each in a virtual environment of its own, versions pinned.

`llm-lightning export --make NAME` makes one, in the folder of the cache (`LLM_LIGHTNING_CACHE`).
"""

import json
import os
import shutil
import subprocess
import venv
from pathlib import Path

from llm_lightning.errors import UserError
from llm_lightning_safety.files import read_text, write_text

ENVIRONMENTS = {
    # Its builder reads the network by transformers; the versions that we run on.
    "onnx-genai": ["torch==2.13.0", "transformers==5.23.0", "onnxruntime-genai==0.18.0", "onnx-ir==1.1.0"],
    # Optimum's ONNX refuses transformers 5.
    "onnx-optimum": [
        "torch==2.13.0",
        "transformers==4.57.6",
        "optimum==2.1.0",
        "optimum-onnx==0.1.0",
        "onnx==1.23.2",
        "onnxruntime==1.32.0",
    ],
    # A Triton server for CPUs, with what the models that it serves import.
    "triton": [
        "torch==2.13.0",
        "transformers==5.23.0",
        "nvidia-pytriton==0.7.0",
        "tritonclient==2.73.0",
        "numpy==1.26.4",
    ],
    # llama.cpp itself, built for CPUs.
    "llama.cpp": ["xllamacpp==2026.10.11549", "numpy==2.4.6"],
}
MARK = "made.json"


def folder_of(name: str) -> Path:
    """Where an environment lies."""
    cache = Path(os.environ.get("LLM_LIGHTNING_CACHE", Path.home() / ".cache" / "llm-lightning"))
    return cache.expanduser() / "environments" / name


def is_made(name: str) -> bool:
    """Whether an environment is there, with the versions that are wanted now."""
    try:
        return bool(json.loads(read_text(folder_of(name) / MARK)) == ENVIRONMENTS[name])
    except (OSError, ValueError):
        return False


def python_of(name: str) -> Path:
    """The interpreter of an environment.

    Raises:
        UserError: it was not made yet.
    """
    if not is_made(name):
        raise UserError(
            f"--to {name} runs in an environment of its own, with {', '.join(ENVIRONMENTS[name])}. Make it once, by "
            f"`llm-lightning export --make {name}`."
        )
    return folder_of(name) / "bin" / "python"


def make(name: str) -> Path:
    """Make an environment, anew if it is there; returns its folder.

    Raises:
        UserError: there is no such environment, or its packages could not be installed.
    """
    if name not in ENVIRONMENTS:
        raise UserError(f"--make {name}: there is no such environment; there are {', '.join(ENVIRONMENTS)}.")
    folder = folder_of(name)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *ENVIRONMENTS[name]]
    if subprocess.run(command).returncode:
        raise UserError(f"--make {name}: pip could not install {', '.join(ENVIRONMENTS[name])}; see above.")
    write_text(folder / MARK, json.dumps(ENVIRONMENTS[name]))  # last: a half-made one does not count
    return folder
