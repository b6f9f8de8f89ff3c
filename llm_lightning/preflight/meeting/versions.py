"""The versions that decide what a rank computes, and how those of several ranks differ."""

import hashlib
import importlib.util
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("lightning", "transformers", "peft", "tokenizers", "numpy", "llm-lightning")
"""Tokenizers cut the text, and numpy draws the order of rows: both are the same on all ranks, or the data are not."""

OWN = ("llm_lightning", "callbacks", "datamodules", "llm_lightning_safety")
CODE = "code of llm-lightning"
ABSENT = "absent"


def versions_here() -> dict[str, str]:
    """What this process runs, by name; CUDA and the libraries that come with it where torch was built with it.

    A version says nothing of a checkout that someone works on, so that our own code is told by a digest too.
    """
    found = {"Python": platform.python_version(), "torch": torch.__version__}
    found |= {name: _version(name) for name in PACKAGES}
    found[CODE] = _digest_of_code()
    if torch.version.cuda is not None:
        found |= {"CUDA": torch.version.cuda, "cuDNN": str(torch.backends.cudnn.version())}
    if torch.version.hip is not None:
        found["ROCm"] = torch.version.hip
    if torch.cuda.is_available():
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def digest_of(versions: Mapping[str, str]) -> int:
    """A number that is the same where all versions are: 63 bits, so that an int64 holds it."""
    text = json.dumps(dict(versions), sort_keys=True).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def differences(groups: Sequence[tuple[Sequence[str], Mapping[str, str]]]) -> str:
    """What differs between groups of ranks, a line for each package.

    Args:
        groups: of ranks that run the same, most ranks first: how they are named, and their versions.
    """
    names = dict.fromkeys(name for _, versions in groups for name in versions)
    lines = []
    for name in names:
        seen: dict[str, list[str]] = {}
        for ranks, versions in groups:
            seen.setdefault(versions.get(name, ABSENT), []).extend(ranks)
        if len(seen) > 1:
            lines.append(f"  {name}: " + "; ".join(f"{v} on {', '.join(ranks)}" for v, ranks in seen.items()))
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ABSENT


def _digest_of_code() -> str:
    digest = hashlib.sha256()
    for package in OWN:
        spec = importlib.util.find_spec(package)
        for folder in sorted(spec.submodule_search_locations or ()) if spec is not None else ():
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(path.relative_to(folder).as_posix().encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
