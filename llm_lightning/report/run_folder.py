"""What a run folder holds that a report tells of. It may be a stranger's, unfinished, or lack any of it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from llm_lightning.errors import UserError
from llm_lightning.evaluation.results import Evaluation, find_evaluations, read_evaluation
from llm_lightning.report.metrics import Metrics, read_metrics
from llm_lightning.report.settings import Settings, flat
from llm_lightning_safety.files import parse_json, read_text
from llm_lightning_safety.redaction import HIDDEN, redact
from llm_lightning_safety.secret_names import is_secret_name

CURVE = "curve.json"
"""Of `llm-lightning generate`."""

COMMANDS = "commands.txt"
"""Each start of the run: when, from which step, and the command."""

MOST_SAMPLES = 5
"""Files of samples that are shown: the first and the newest."""

MOST_ROLLOUTS = 16
LONGEST_TEXT = 20_000
"""Characters of a file of samples."""

T = TypeVar("T")


@dataclass(frozen=True)
class Samples:
    """Texts of one step.

    Args:
        title: of the step.
        text: as written.
        rows: rollouts instead of a text, one dict each.
    """

    title: str
    text: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """All that there is; texts are without secrets.

    Args:
        folder: of the run, or of an evaluation alone.
        name: tells it from the other runs of the report.
        settings: flat; empty where there is no config.yaml.
        history: settings that were changed when the run went on.
        commands: that started it.
        metrics: of metrics.csv.
        samples, rollouts: the newest last.
        pruning: the table of pruning.txt.
        quantization, reliability, energy, safety, curve: what the JSON files hold.
        evaluations: the newest last.
        is_finished: whether the last model folder is there.
        notes: what could not be read, and why.
    """

    folder: Path
    name: str
    settings: Settings
    history: list[str]
    commands: list[str]
    metrics: Metrics | None
    samples: list[Samples]
    rollouts: list[Samples]
    pruning: str | None
    quantization: dict[str, Any] | None
    reliability: dict[str, Any] | None
    energy: dict[str, Any] | None
    safety: dict[str, Any] | None
    curve: dict[str, Any] | None
    evaluations: list[Evaluation]
    is_finished: bool
    notes: list[str]


def read_runs(folders: list[Path]) -> list[Run]:
    """Read run folders, each under the shortest name that no other has.

    Raises:
        UserError: one is no folder of a run.
    """
    for folder in folders:
        _check(folder)
    return [replace(read_run(folder), name=redact(name)) for folder, name in zip(folders, _names(folders), strict=True)]


def read_run(folder: Path) -> Run:
    """Read one; whatever cannot be read becomes a note, and the rest is told."""
    notes: list[str] = []

    def attempt(name: str, read: Callable[[Path], T], missing: T) -> T:
        path = folder / name
        if not path.exists() and not path.is_symlink():
            return missing
        try:
            return read(path)
        except OSError as error:
            notes.append(redact(f"{name} was left out: {error.filename or path} {error.strerror or error}"))
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            notes.append(redact(f"{name} was left out: {' '.join(str(error).split())}"))
        return missing

    no_settings: tuple[Settings, list[str]] = ({}, [])
    settings, history = attempt("config.yaml", _read_config, no_settings)
    evaluations = [attempt(str(each.relative_to(folder)), _read_evaluation, None) for each in find_evaluations(folder)]
    return Run(
        folder=folder,
        name=redact(folder.resolve().name),
        settings=settings,
        history=history,
        commands=attempt(COMMANDS, _read_lines, []),
        metrics=attempt("metrics.csv", _read_metrics, None),
        samples=attempt("samples", _read_samples, []),
        rollouts=attempt("samples", _read_rollouts, []),
        pruning=attempt("pruning.txt", lambda path: redact(read_text(path)), None),
        quantization=attempt("quantization.json", _read_json, None),
        reliability=attempt("reliability.json", _read_json, None),
        energy=attempt("energy.json", _read_json, None),
        safety=attempt("safety.json", _read_json, None),
        curve=attempt(CURVE, _read_json, None),
        evaluations=[each for each in evaluations if each is not None],
        is_finished=(folder / "model" / "last").is_dir(),
        notes=list(dict.fromkeys(notes)),
    )


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name that of a run, of an evaluation, or of answers.")
    known = ("config.yaml", "metrics.csv", CURVE)
    if not any((folder / name).exists() for name in known) and not find_evaluations(folder):
        raise UserError(
            f"{folder} holds no run (no config.yaml, no metrics.csv), no evaluation and no {CURVE} of `generate`; name "
            "the folder that trainer.default_root_dir was."
        )


def _names(folders: list[Path]) -> list[str]:
    """The last parts of the paths, as many as it takes."""
    places = [folder.resolve() for folder in folders]
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [f"{place.name} ({i})" for i, place in enumerate(places, 1)]


def _read_config(path: Path) -> tuple[Settings, list[str]]:
    text = read_text(path)
    config = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if not isinstance(config, dict):
        raise ValueError("it holds no settings of a run")
    history = [redact(line[2:]) for line in text.splitlines() if line.startswith("# ")]
    settings = flat(config)
    hidden = {name: HIDDEN for name, value in settings.items() if value and any(map(is_secret_name, name.split(".")))}
    return redact(settings | hidden), history


def _read_metrics(path: Path) -> Metrics:
    found = read_metrics(path)
    return replace(found, columns={redact(name): values for name, values in found.columns.items()})


def _read_lines(path: Path) -> list[str]:
    return [redact(line) for line in read_text(path).splitlines() if line.strip()]


def _read_json(path: Path) -> dict[str, Any]:
    found = parse_json(read_text(path))
    if not isinstance(found, dict):
        raise ValueError("it is not as a run writes it")
    return redact(found)


def _read_evaluation(folder: Path) -> Evaluation | None:
    found = read_evaluation(folder)
    return replace(
        found,
        created=redact(found.created),
        command=redact(found.command),
        model=redact(found.model),
        settings=redact(found.settings),
        tasks={redact(name): redact(task) for name, task in found.tasks.items()},
    )


def _read_samples(folder: Path) -> list[Samples]:
    return [
        Samples(f"step {step:,}", redact(read_text(path))[:LONGEST_TEXT])
        for step, path in _by_step(folder, r"step-(\d{1,12})\.txt")
    ]


def _read_rollouts(folder: Path) -> list[Samples]:
    found = []
    for step, path in _by_step(folder, r"rollouts-(\d{1,12})\.jsonl"):
        lines = read_text(path, 2**24).splitlines()[:MOST_ROLLOUTS]
        rows = [row for line in lines if isinstance(row := parse_json(line), dict)]
        found.append(Samples(f"step {step:,}", rows=redact(rows)))
    return found


def _by_step(folder: Path, pattern: str) -> list[tuple[int, Path]]:
    if folder.is_symlink():
        raise OSError(0, "is a link", str(folder))
    named = [(re.fullmatch(pattern, path.name), path) for path in folder.iterdir()]
    found = sorted((int(match[1]), path) for match, path in named if match)
    return found if len(found) <= MOST_SAMPLES else [found[0], *found[1 - MOST_SAMPLES :]]
