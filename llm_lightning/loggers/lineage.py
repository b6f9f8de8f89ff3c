"""What a run was made from and what came of it, as W&B artifacts.

An artifact holds a description, a JSON file of a few hundred bytes: the same data or the same model gives the same
artifact in every run, which is what joins runs to a lineage. Files are uploaded only where that is asked for.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from llm_lightning.loggers.redact import redact

NOTE = Path("wandb") / "model.json"
"""In the run folder: what the run's model artifact says, for the stage that goes on from that model."""


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


def input_model_artifact(path: str) -> Any:
    """The model that a run goes on from: the very artifact of the run that made it, where that is known.

    Args:
        path: `backbone.path`: a model folder, or a hub id.
    """
    folder = Path(path)
    note = folder.parent.parent / NOTE
    if note.is_file():
        return _of_run(json.loads(note.read_text()))
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
    (root / NOTE).write_text(json.dumps(description, indent=1))
    return _of_run(description)


def _of_run(description: Mapping[str, Any]) -> Any:
    artifact = _artifact(f"model-{description['run']}", "model", "model.json", description)
    if description["is_uploaded"]:
        artifact.add_dir(description["path"])
    return artifact


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
