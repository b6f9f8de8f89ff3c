"""Other people's training code, each in a virtual environment of its own, versions pinned.

`python benchmarks/peers.py [NAME ...]` makes them under `benchmarks/.peers/`, or where $LLM_LIGHTNING_PEERS says. They
are never among our dependencies: their pins exclude ours.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

PEERS = {
    # torch is named, since litgpt alone would take whatever is newest.
    "litgpt": ["torch==2.13.0", "lightning==2.6.6", "litgpt==0.5.13", "numpy==2.4.6", "requests==2.34.2"],
    # It excludes the transformers that we run on.
    "llm-compressor": [
        "torch==2.13.0",
        "llmcompressor==0.14.0.1",
        "transformers==5.17.0",
        "compressed-tensors==0.19.0",
        "datasets==5.2.0",
        "numpy==2.4.6",
    ],
    # The versions that we run on, so that what differs is TRL.
    "trl": [
        "torch==2.13.0",
        "transformers==5.23.0",
        "trl==1.16.0",
        "peft==0.21.2",
        "datasets==5.2.0",
        "accelerate==1.15.0",
        "numpy==2.4.6",
    ],
    # The last release with PPO.
    "trl-ppo": [
        "torch==2.13.0",
        "transformers==5.23.0",
        "trl==1.12.0",
        "peft==0.21.2",
        "datasets==5.2.0",
        "accelerate==1.15.0",
        "numpy==2.4.6",
    ],
}


def peers_folder() -> Path:
    """Where the environments lie."""
    return Path(os.environ.get("LLM_LIGHTNING_PEERS") or Path(__file__).parent / ".peers")


def peer_python(name: str) -> Path:
    """The peer's interpreter.

    Raises:
        FileNotFoundError: its environment was not made yet.
    """
    python = peers_folder() / name / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"{python} is missing: make it by `python benchmarks/peers.py {name}`.")
    return python


def make(name: str) -> None:
    """Make one environment, anew if it is there."""
    folder = peers_folder() / name
    venv.create(folder, with_pip=True, clear=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *PEERS[name]], check=True)
    print(f"{name}: {folder}")


def main(names: list[str]) -> int:
    """Make the named environments, or all."""
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        print(f"There is no peer {unknown[0]!r}; there are {', '.join(PEERS)}.", file=sys.stderr)
        return 2
    for name in names or PEERS:
        make(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
