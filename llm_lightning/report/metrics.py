"""A run's metrics.csv, as columns of numbers over a common axis."""

import csv
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np

from llm_lightning_safety.files import read_text

MOST_BYTES = 2**28
MOST_COLUMNS = 1_000
LARGEST = 1e100
"""Of a metric; between larger ones no chart can calculate."""


@dataclass(frozen=True)
class Metrics:
    """What a run logged.

    Args:
        steps: optimizer step of each row (N,).
        columns: values by name (N,), not a number where there is none.
    """

    steps: np.ndarray
    columns: dict[str, np.ndarray]

    @property
    def has_tokens(self) -> bool:
        """Whether the run counted its tokens."""
        return bool(np.isfinite(self.columns.get("tokens", np.array([]))).any())

    def curve(self, name: str, over_tokens: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """x (tokens, or steps) and y where the metric is a finite number; a row without tokens lies between its
        neighbours.
        """
        y = self.columns.get(name, np.full(len(self.steps), np.nan))
        x = self.steps
        if over_tokens and self.has_tokens:
            known = np.isfinite(self.columns["tokens"])
            x = np.interp(x, np.append(0, x[known]), np.append(0, self.columns["tokens"][known]))
        is_number = np.isfinite(y)
        return x[is_number], y[is_number]

    def last(self, name: str) -> float | None:
        """The last value, None where there is none."""
        y = self.curve(name)[1]
        return float(y[-1]) if len(y) else None

    def best(self, name: str, highest: bool = False) -> tuple[float, int] | None:
        """The lowest (or highest) value and its step, None where there is none."""
        steps, y = self.curve(name, over_tokens=False)
        if not len(y):
            return None
        place = int(y.argmax() if highest else y.argmin())
        return float(y[place]), int(steps[place])


def read_metrics(path: Path) -> Metrics:
    """Read the file; what is no number, and a last line that a killed run left torn, is left out.

    Raises:
        OSError: it is a link, or too large.
        ValueError: it is no table of metrics.
    """
    text = read_text(path, MOST_BYTES)
    lines = csv.reader(StringIO(text[: text.rfind("\n") + 1]))
    try:
        header = next(lines, [])
        rows = [row for row in lines if len(row) == len(header)]
    except csv.Error as error:
        raise ValueError(f"{path} is no table of metrics ({error})") from error
    if "step" not in header or len(header) > MOST_COLUMNS:
        raise ValueError(f"{path} is no table of metrics: its first line has no step among at most 1,000 names")
    columns = {name: np.array([_number(row[i]) for row in rows]) for i, name in enumerate(header)}
    steps = columns.pop("step")
    order = np.flatnonzero(np.isfinite(steps))
    order = order[np.argsort(steps[order], kind="stable")]
    return Metrics(steps[order], {name: values[order] for name, values in columns.items()})


def _number(text: str) -> float:
    try:
        value = float(text or "nan")
    except ValueError:
        return np.nan
    return value if abs(value) < LARGEST else np.nan
