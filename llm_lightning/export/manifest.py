"""`export_manifest.json`: what an export was made of, and how it was proven."""

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llm_lightning.export.proof.asking import Answers
from llm_lightning.export.proof.limits import Limits
from llm_lightning.export.proof.verdict import Comparison
from llm_lightning.export.source import Source
from llm_lightning_safety.files import read_text, write_text

MANIFEST = "export_manifest.json"
PACKAGES = ("llm-lightning", "torch", "transformers", "tokenizers", "safetensors", "peft", "gguf")


def num_bytes(folder: Path) -> int:
    """Of all files below a folder, without the manifest."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST)


def manifest(
    source: Source,
    name: str,
    asked: dict[str, Any],
    limits: Limits,
    comparison: Comparison,
    trained: Answers,
    answers: Answers,
    unsaid: dict[str, str],
) -> dict[str, Any]:
    """All that is known of an export."""
    speeds = {key: trained.said.get(key) for key in ("prefill_tokens_per_s", "decode_tokens_per_s")}
    return _identity(source, name, asked, limits) | {
        "model": {"path": str(source.given), "base": source.base, "task": source.task.name, "dtype": source.dtype},
        "comparison": comparison.as_dict(),
        "trained": speeds | {"num_scored": trained.said.get("num_scored")},
        "may_differ": list(unsaid.values()),
        "ends": answers.said.get("ends"),
        "versions": {package: found for package in PACKAGES if (found := _version(package))}
        | answers.said.get("versions", {}),
    }


def _identity(source: Source, name: str, asked: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """What has to be the same for an export to be the same."""
    questions = hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=12).hexdigest()
    return {
        "export": name,
        "fingerprint": source.fingerprint,
        "questions": questions,
        "limits": asdict(limits),
    }


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """The manifest of a folder that is otherwise whole, with the sizes of its files."""
    files = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    content = content | {"bytes": sum(files.values()), "files": files}
    write_text(folder / MANIFEST, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def is_kept(folder: Path, source: Source, name: str, asked: dict[str, Any], limits: Limits) -> dict[str, Any] | None:
    """The manifest of an export of this very model that was proven in the same way, whose files are all there."""
    try:
        found = json.loads(read_text(folder / MANIFEST))
        wanted = json.loads(json.dumps(_identity(source, name, asked, limits)))
        same = {key: found.get(key) for key in wanted} == wanted
        there = {file: (folder / file).stat().st_size for file in found["files"]}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return found if same and there == found["files"] else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
