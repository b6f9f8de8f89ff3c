"""What a filter is: it gives every record a number, and a threshold on these numbers says which records stay."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from datamodules.errors import DataError
from datamodules.synthetic.candidate import Candidate, Message
from datamodules.synthetic.engine import Engine

ROUNDING = 1e-6  # a tenth of ten records is one, whatever (1 - 0.9) * 10 is in binary


@dataclass(frozen=True)
class Context:
    """What filters may look at beside the records.

    Args:
        seeds: the real training conversations, anew at each call.
        held_out: the real validation and test conversations, anew at each call.
        engine: the model that judges and says perplexities; None where there is none.
        folder: for files that filters need while they run.
    """

    seeds: Callable[[], Iterator[list[Message]]]
    held_out: Callable[[], Iterator[list[Message]]]
    engine: Engine | None
    folder: Path

    def engine_for(self, who: str) -> Engine:
        """The engine; raises `DataError` where there is none."""
        if self.engine is None:
            raise DataError(f"filters: {who} asks a model, and no engine is configured; name one or leave {who} out")
        return self.engine


@dataclass(frozen=True)
class Threshold:
    """Which scores stay: those from `min` to `max`, both included.

    Args:
        min: no bound where it is None.
        max: no bound where it is None.
        by: `value` compares the scores themselves; `quantile` says which share of the records that reach this filter
            lies below, from 0 to 1: with `{max: 0.95, by: quantile}` the highest twentieth goes.
    """

    min: float | None = None
    max: float | None = None
    by: Literal["value", "quantile"] = "value"

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.min, self.max) if bound is not None]
        if bounds != sorted(bounds):
            raise DataError(f"threshold: its min {self.min} is above its max {self.max}")
        if self.by == "quantile" and not all(0 <= bound <= 1 for bound in bounds):
            raise DataError(f"threshold: quantiles go from 0 to 1, not {' and '.join(map(str, bounds))}")

    def bounds(self, scores: np.ndarray) -> tuple[float, float]:
        """The lowest and the highest score that stays.

        Args:
            scores: (N,) of all records; only quantiles look at them.
        """
        if self.by == "value":
            return (-np.inf if self.min is None else self.min), (np.inf if self.max is None else self.max)
        known = np.sort(scores[~np.isnan(scores)])
        if not len(known):
            return -np.inf, np.inf
        lowest = 0 if self.min is None else int(self.min * len(known) + ROUNDING)
        highest = len(known) - 1 - (0 if self.max is None else int((1 - self.max) * len(known) + ROUNDING))
        return float(known[min(lowest, len(known) - 1)]), float(known[max(highest, 0)])


@dataclass(frozen=True)
class Scores:
    """What a filter says of some records, in their order.

    Args:
        values: (N,); NaN where nothing can be said, and these records are dropped.
        reasons: (N,) texts, each in a word or two; what the filter found. Empty where the threshold says it all.
    """

    values: np.ndarray
    reasons: Sequence[str] = ()

    @classmethod
    def of(cls, findings: Iterable[tuple[float, str]]) -> "Scores":
        """From the score and the reason of each record."""
        values, reasons = zip(*findings, strict=True)
        return cls(np.array(values, np.float32), reasons)


class Filter(ABC):
    """Gives every record a number and keeps those within a threshold.

    Args:
        threshold: which numbers stay.
    """

    name: str
    """Of the filter in reports and of its score among a record's scores."""

    too_low: ClassVar[str] = "too low"
    too_high: ClassVar[str] = "too high"
    """What is said of a dropped record where the filter gives it no reason of its own."""

    needs_all: ClassVar[bool] = False
    """Whether it must have seen all records before it can score the first."""

    def __init__(self, threshold: Threshold) -> None:
        self.threshold = threshold

    @property
    def is_late(self) -> bool:
        """Whether all records have to be read before it is known which of them stay."""
        return self.needs_all or self.threshold.by == "quantile"

    @abstractmethod
    def scores(self, batches: Iterator[list[Candidate]], context: Context) -> Iterator[Scores]:
        """The scores of each batch before the next one is taken; if `needs_all`, in pieces of any size at the end."""
