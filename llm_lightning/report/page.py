"""The page: one HTML file with all that it needs in it, and nothing from elsewhere."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from llm_lightning import __version__
from llm_lightning.errors import UserError
from llm_lightning.evaluation.comparison import Comparison, compare
from llm_lightning.report import chart, figures
from llm_lightning.report.answers import answers
from llm_lightning.report.curves import chosen_charts, other_charts
from llm_lightning.report.run_folder import Run, read_runs
from llm_lightning.report.safety import safety
from llm_lightning.report.settings import NOTHING, differing, in_short, of_data, shown
from llm_lightning_safety.files import atomic_file
from llm_lightning_safety.redaction import redact

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_TEXT = 20_000
MOST_RUNS = 8
"""As many colors are told apart in a chart."""


def write_report(folders: Sequence[Path], output: Path) -> None:
    """Write a page about runs.

    Args:
        folders: of runs, or of evaluations alone; several are compared with the first.
        output: the file.

    Raises:
        UserError: a folder holds no run, or there are too many.
        OSError: the page cannot be written.
    """
    if not 1 <= len(folders) <= MOST_RUNS:
        raise UserError(f"{len(folders)} runs: a report tells of 1 to {MOST_RUNS}.")
    page = render(read_runs(list(folders)))
    with atomic_file(output) as temporary:
        # A lone half of a character, which JSON can hold, is in no UTF-8.
        temporary.write_text(page, encoding="utf-8", errors="replace")


def render(runs: list[Run]) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": figures.number,
        "shown": shown,
        "cut": _cut,
        "p": _p,
        "signed": _signed,
        "score": _score,
        "redact": redact,
    }
    environment.globals |= {"chart_size": _chart_size(), "nothing": NOTHING}
    return environment.get_template("page.html.jinja").render(
        title=f"{runs[0].name}: a run" if len(runs) == 1 else " and ".join(run.name for run in runs),
        created=f"{datetime.now():%Y-%m-%d %H:%M}",
        version=__version__,
        runs=[_told(run) for run in runs],
        charts=chosen_charts(runs),
        other_charts=other_charts(runs),
        figures=_side_by_side([{"state": figures.state(run)} | figures.figures(run) for run in runs]),
        differing=differing([run.settings for run in runs]) if len(runs) > 1 else [],
        comparisons=[_comparison(runs[0], run) for run in runs[1:]],
    )


def _told(run: Run) -> dict[str, Any]:
    """What the template says of one run."""
    columns, rows = figures.schemes(run.quantization) if run.quantization else ([], [])
    return {
        "run": run,
        "name": run.name,
        "folder": redact(str(run.folder)),
        "in_short": in_short(run.settings),
        "settings": [(name, shown(value)) for name, value in run.settings.items()],
        "statistics": figures.statistics(run),
        "data": of_data(run.settings),
        "scheme_columns": columns,
        "schemes": rows,
        "energy": figures.energy(run.energy) if run.energy else [],
        "safety": safety(run.safety) if run.safety else None,
        "answers": answers(run.curve) if run.curve else None,
        "kept": (run.quantization or {}).get("kept"),
        "reliability": figures.reliability_chart(run.reliability) if run.reliability else None,
        "has_compression": bool(run.pruning or rows),
    }


def _comparison(first: Run, second: Run) -> dict[str, Any]:
    found, failure = Comparison([], {}, []), None
    try:
        found = compare(first.evaluations, second.evaluations)
    except (UserError, OSError) as error:
        failure = redact(str(error))
    asked_differently: list[tuple[list[str], Any]] = []
    for task, rows in found.differing_settings.items():
        same = next((tasks for tasks, others in asked_differently if others == rows), None)
        if same is None:
            asked_differently.append(([task], rows))
        else:
            same.append(task)
    return {
        "first": first.name, "second": second.name, "found": found, "failure": failure,
        "asked_differently": asked_differently,
    }  # fmt: skip


def _side_by_side(runs: list[dict[str, str]]) -> list[tuple[str, list[str]]]:
    labels = list(dict.fromkeys(label for run in runs for label in run))
    return [(label, [run.get(label, NOTHING) for run in runs]) for label in labels]


def _chart_size() -> dict[str, int]:
    return {
        "width": chart.WIDTH, "height": chart.HEIGHT, "left": chart.LEFT, "right": chart.WIDTH - chart.RIGHT,
        "top": chart.TOP, "bottom": chart.HEIGHT - chart.BOTTOM,
    }  # fmt: skip


def _cut(value: Any) -> str:
    """A text, or JSON, of a length that a page can hold."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} …"


def _score(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) and abs(value) < 10 else figures.number(value)


def _p(value: float) -> str:
    return NOTHING if value != value else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _signed(value: float) -> str:
    return NOTHING if value != value else f"{value:+.4f}"
