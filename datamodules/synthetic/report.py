"""What the filters did, as one JSON file for programs and one HTML page for people."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.synthetic.candidate import Candidate
from datamodules.synthetic.funnel import Funnel, Stage
from llm_lightning_safety.files import atomic_file
from llm_lightning_safety.redaction import redact

TEMPLATE = "report.html.jinja"
NUM_BINS = 36
FEWEST_VALUES = 6  # that make a distribution; below, the counts say it all
TAIL = 0.005  # of the values at each end, which share a bin: one of a million would leave the others a line
SHOWN = 4000  # characters of a text in the page


def write_report(folder: Path, funnel: Funnel, about: dict[str, Any]) -> Path:
    """Writes `report.json` and `report.html` into the folder.

    Args:
        about: what else belongs into the report, as JSON can write it: settings, models, times; secrets are left out.

    Returns:
        The page. It is one file, without scripts and without anything from elsewhere.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    contents = contents_of(funnel, redact(about))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"shown": _shown, "pretty": partial(json.dumps, indent=1, ensure_ascii=False)}
    page = environment.get_template(TEMPLATE).render(contents)
    for name, text in (("report.json", json.dumps(contents, indent=1, ensure_ascii=False)), ("report.html", page)):
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="replace")
    return folder / "report.html"


def contents_of(funnel: Funnel, about: dict[str, Any]) -> dict[str, Any]:
    """All that the report says, as JSON can write it."""
    stays = np.zeros(funnel.num_in, bool)
    stays[funnel.positions] = True
    before, after = (
        np.bincount(of, minlength=len(funnel.generators)) for of in (funnel.origins, funnel.origins[stays])
    )
    return {
        "num_generated": funnel.num_in,
        "num_kept": funnel.num_kept,
        "generators": [
            {"name": name, "num_generated": int(before[code]), "num_kept": int(after[code])}
            for code, name in enumerate(funnel.generators)
        ],
        "stages": [_stage(stage) for stage in funnel.stages],
        "answer_characters": histogram(funnel.lengths.astype(np.float32), stays),
        "samples": [_record(candidate) for candidate in funnel.samples],
        "about": about,
    }


def histogram(values: np.ndarray, stays: np.ndarray, bounds: Sequence[float] = ()) -> dict[str, Any] | None:
    """How many records have which values, of all and of those that stay; None where there is nothing to be drawn.

    Args:
        values: (N,); NaN is left out.
        stays: (N,) bool.
        bounds: values that have to be in the picture.
    """
    known = ~np.isnan(values)
    values, stays = values[known], stays[known]
    if len(np.unique(values)) < FEWEST_VALUES:
        return None
    inside = [bound for bound in bounds if values.min() < bound < values.max()]
    low, high = np.quantile(values, [TAIL, 1 - TAIL])
    low, high = min([low, *inside]), max([high, *inside])
    if low == high:
        low, high = values.min(), values.max()
    edges = np.linspace(low, high, NUM_BINS + 1)
    clipped = np.clip(values, low, high)
    return {
        "edges": [float(edge) for edge in edges],
        "all": np.histogram(clipped, edges)[0].tolist(),
        "kept": np.histogram(clipped[stays], edges)[0].tolist(),
    }


def _stage(stage: Stage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "num_in": stage.num_in,
        "num_kept": stage.num_kept,
        "dropped": stage.dropped,
        "threshold": asdict(stage.filter.threshold),
        "bounds": [bound if np.isfinite(bound) else None for bound in stage.bounds],
        "scores": histogram(stage.scores, stage.codes == 0, stage.bounds),
        "examples": [
            {"reason": each.reason, "score": _number(each.score), **_record(each.candidate)} for each in stage.examples
        ],
    }


def _record(candidate: Candidate) -> dict[str, Any]:
    return asdict(candidate) | {"scores": {name: _number(score) for name, score in candidate.scores.items()}}


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None  # JSON has no NaN


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} … {len(text) - SHOWN:,} characters more"
