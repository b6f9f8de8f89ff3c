"""A run's metrics as a CSV file that any tool opens."""

import csv
import warnings
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from llm_lightning_safety.files import open_unlinked, write_text

Row = dict[str, str]


class MetricsFile(Logger):
    """Writes `metrics.csv`: one row a step, with columns `step`, `tokens` (if logged), then metrics as they come.

    Under a trainer, `step` is the number of optimizer steps done, as in checkpoints' names; Lightning passes one less.
    Each call is on disk when it returns, so that a killed process loses nothing; its last line may be torn, which the
    next run repairs. A full disk costs rows, not the run. A resumed run drops the rows of the steps that it trains
    anew: those behind the step given to `go_on_behind`, else those from the step of its first metrics on. Metrics of an
    earlier step are added to that step's row. Only fit writes: a validation of its own has no place in the history of
    training.

    Args:
        save_dir: Folder of the file. The trainer's run folder (`default_root_dir`) if not given.
        filename: Name of the file.
    """

    def __init__(self, save_dir: str | Path | None = None, filename: str = "metrics.csv") -> None:
        super().__init__()
        self._save_dir = None if save_dir is None else Path(save_dir)
        self.filename = filename
        self._writes = True
        self._first_step = 0
        self._kept: int | None = None
        self._columns: list[str] | None = None
        self._row: Row = {}
        self._row_start = 0

    @property
    @override
    def name(self) -> str:
        return "metrics"

    @property
    @override
    def version(self) -> str:
        return ""

    @property
    @override
    def save_dir(self) -> str | None:
        return None if self._save_dir is None else str(self._save_dir)

    @property
    def path(self) -> Path:
        """Place of the file; in the working directory until the trainer's run folder is known."""
        return (self._save_dir or Path()) / self.filename

    def go_on_behind(self, step: int) -> None:
        """Keep the rows up to this optimizer step, whatever is logged first; 0 for a run that starts."""
        self._kept, self._first_step = step, 1

    @override
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        # Of a logger's hooks, this alone sees the trainer before the first metric.
        self._writes = model.trainer.state.fn == "fit"
        self._first_step = 1
        if self._save_dir is None:
            self._save_dir = Path(model.trainer.default_root_dir)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Not kept here: the run folder's `config.yaml` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds metrics to the row of a step, or begins it.

        Args:
            metrics: Names and values.
            step: The step they belong to; that of the call before if not given.
        """
        if not self._writes:
            return
        try:
            self._log(metrics, step)
        except OSError as error:
            warnings.warn(f"Metrics were not written, training goes on: {error}", stacklevel=2)

    def _log(self, metrics: Mapping[str, float], step: int | None) -> None:
        key = int(self._row.get("step", 0)) if step is None else step + self._first_step
        if self._columns is None:
            self._columns = self._begin(key)
        values = {name: _format(value) for name, value in metrics.items()}
        newest = int(self._row.get("step", -1))
        if key < newest:
            self._add_to_earlier(key, values)
            return
        if key > newest:
            self._row, self._row_start = {"step": str(key)}, self.path.stat().st_size
        self._row.update(values)
        if self._row.keys() <= set(self._columns):
            self._write_row()
        else:
            self._columns = _ordered([*self._columns, *self._row])
            self._rewrite([*_rows_before(self.path, key), self._row])

    def _add_to_earlier(self, key: int, values: Row) -> None:
        rows = _rows_before(self.path, int(self._row["step"]) + 1)
        row = next((row for row in rows if int(row["step"]) == key), None)
        if row is None:
            row = {"step": str(key)}
            rows = sorted([*rows, row], key=lambda row: int(row["step"]))
        row.update(values)
        self._columns = _ordered([*(self._columns or []), *row])
        self._rewrite(rows)

    def _begin(self, step: int) -> list[str]:
        """Makes the file, or takes over that of the run that this one resumes; returns its columns."""
        first_anew = step if self._kept is None else self._kept + 1
        rows = _rows_before(self.path, first_anew) if self.path.exists() else []
        self._columns = _ordered(["step", *(name for row in rows[:1] for name in row)])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._rewrite(rows)
        self._row = rows[-1] if rows else {}
        return self._columns

    def _write_row(self) -> None:
        with open_unlinked(self.path, "r+b") as file:
            file.seek(self._row_start)
            file.write(_line(self._row, self._columns or []).encode())
            file.truncate()

    def _rewrite(self, rows: list[Row]) -> None:
        columns = self._columns or []
        lines = [_line(row, columns) for row in rows]
        write_text(self.path, _line(dict(zip(columns, columns, strict=True)), columns) + "".join(lines))
        self._row_start = self.path.stat().st_size - (len(lines[-1].encode()) if lines else 0)


def _rows_before(path: Path, step: int) -> list[Row]:
    """Whole rows of earlier steps. A torn last line has too few fields, or no newline behind a number cut short."""
    with open_unlinked(path, "r", encoding="utf-8") as file:
        text = file.read()
    header, *rows = csv.reader(StringIO(text[: text.rfind("\n") + 1])) if "\n" in text else [[]]
    whole = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
    return [row for row in whole if row["step"].isdigit() and int(row["step"]) < step]


def _ordered(names: list[str]) -> list[str]:
    """Each name once, in order, with `step` and `tokens` in front."""
    names = list(dict.fromkeys(names))
    front = [name for name in ("step", "tokens") if name in names]
    return front + [name for name in names if name not in front]


def _line(row: Row, columns: list[str]) -> str:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerow([row.get(name, "") for name in columns])
    return text.getvalue()


def _format(value: float) -> str:
    """A whole number without a point (tokens); else the nine digits that tell two float32 apart."""
    if isinstance(value, int) or (value.is_integer() and abs(value) < 2**53):
        return str(int(value))
    return f"{value:.9g}"
