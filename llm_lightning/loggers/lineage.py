"""What a run was made from and what came of it, as W&B artifacts.

An artifact holds a description, a JSON file of a few hundred bytes: the same data or the same model gives the same
artifact in every run, which is what joins runs to a lineage. Files of models are uploaded only where that is asked for;
the run's page always is.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from llm_lightning.loggers.redact import redact
from llm_lightning_safety.files import is_plain_name, make_folder, read_text, write_text

NOTE = Path("wandb") / "model.json"
"""In the run folder: what the run's model artifact says, for the stage that goes on from that model."""

NOTED = {"run": str, "path": str, "files": dict, "step": int, "metrics": dict, "is_uploaded": bool}
"""The note's entries."""


def data_artifact(datamodule: Any) -> Any | None:
    """What is trained on; None for a DataModule that cannot say.

    Args:
        datamodule: its `describe()` gives a dict with at least `path`.
    """
    describe = getattr(datamodule, "describe", None)
    if not callable(describe):
        return None
    description = redact({"datamodule": type(datamodule).__name__, **describe()})
    first = description["path"][0] if isinstance(description["path"], list) else description["path"]
    return _artifact(f"data-{_slug(Path(str(first or 'data')).name)}", "dataset", "data.json", description)


def input_model_artifact(path: str, log_model: bool) -> Any:
    """The model that a run goes on from: the artifact of the run that made it, where that is known.

    The run folder that it lies in may be a stranger's: of its note only what `output_model_artifact` writes is taken,
    and never a path to upload from. Files are added where the note and this run's own setting both say so: those of
    the model folder itself.

    Args:
        path: `backbone.path`: a model folder, or a hub id.
        log_model: whether this run uploads models.
    """
    folder = Path(path)
    if (noted := _read_note(folder.parent.parent / NOTE)) is not None:
        is_inside = folder.resolve().is_relative_to(folder.parent.parent.resolve())
        return _of_run(noted, folder if log_model and is_inside else None)
    description = {"path": path} | ({"files": _sizes(folder)} if folder.is_dir() else {})
    return _artifact(f"model-{_slug(folder.name)}", "model", "model.json", redact(description))


def output_model_artifact(trainer: Trainer, run_id: str, log_model: bool) -> Any | None:
    """The model that a run leaves behind, the best one where there is one; None where there is none.

    It is noted in the run folder, too.

    Args:
        trainer: whose run folder holds `model/`.
        run_id: of the W&B run.
        log_model: whether the folder's files are uploaded.
    """
    root = Path(trainer.default_root_dir)
    folder = next((each for each in (root / "model" / "best", root / "model" / "last") if each.is_dir()), None)
    if folder is None:
        return None
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    description = {
        "run": run_id,
        "path": str(folder.resolve()),
        "files": _sizes(folder),
        "step": trainer.global_step,
        "metrics": metrics,
        "is_uploaded": log_model,
    }
    make_folder((root / NOTE).parent)
    write_text(root / NOTE, json.dumps(description, indent=1))
    return _of_run(description, folder)


def report_artifact(report: Path, run_id: str) -> Any | None:
    """A run's page; None where there is none, or a link in its place.

    Args:
        report: the page.
        run_id: of the W&B run.
    """
    if report.is_symlink() or not report.is_file():
        return None
    import wandb

    artifact = wandb.Artifact(f"report-{run_id}", type="report")
    artifact.add_file(str(report))
    return artifact


def _of_run(description: Mapping[str, Any], folder: Path | None) -> Any:
    artifact = _artifact(f"model-{description['run']}", "model", "model.json", description)
    if description["is_uploaded"] and folder is not None:
        for file in _plain_files(folder):
            artifact.add_file(str(file), name=file.relative_to(folder).as_posix())
    return artifact


def _plain_files(folder: Path) -> Iterator[Path]:
    """Of a model folder, without what is reached by links."""
    for parent, _, names in os.walk(folder):
        paths = (Path(parent) / name for name in sorted(names))
        yield from (path for path in paths if path.is_file() and not path.is_symlink())


def _read_note(note: Path) -> dict[str, Any] | None:
    """What `output_model_artifact` wrote; None for a file that is not there, a link, or not as it would write it."""
    try:
        noted = json.loads(read_text(note))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(noted, dict) or not all(isinstance(noted.get(name), kind) for name, kind in NOTED.items()):
        return None
    noted = {name: noted[name] for name in NOTED}
    numbers = [*noted["files"].values(), *noted["metrics"].values()]
    return noted if is_plain_name(noted["run"]) and all(isinstance(each, int | float) for each in numbers) else None


def _artifact(name: str, kind: str, file_name: str, description: Mapping[str, Any]) -> Any:
    import wandb

    artifact = wandb.Artifact(name, type=kind, metadata=dict(description))
    with artifact.new_file(file_name) as file:
        json.dump(description, file, indent=1, sort_keys=True)
    return artifact


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def _slug(name: str) -> str:
    """A name that W&B takes: letters, digits, dashes, underscores and dots."""
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in name)[:100] or "unnamed"
