"""What users say of a mixture: weights by trained tokens, a temperature, and how often rows may come again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from datamodules.errors import DataError
from datamodules.serving.orders.mixture import Mixture, MixtureOrder, Share
from datamodules.sources.discover import Source


def check_weights(sources: Sequence[Source], temperature: float | None) -> None:
    """Raises `DataError` for weights that mean nothing."""
    weighted = [source for source in sources if source.weight is not None]
    if len(weighted) not in (0, len(sources)):
        raise DataError("sources: give a weight to all of them or to none")
    if temperature is not None and weighted:
        raise DataError("temperature and sources' weights: give one of them (both are given)")
    if temperature is not None and not 0 < temperature < math.inf:
        raise DataError(f"temperature: it must be above 0, not {temperature}")
    for source in sources:
        _check(source)


def _check(source: Source) -> None:
    changes = {"weight_schedule": source.weight_schedule, "max_epochs": source.max_epochs}
    for name, value in changes.items():
        if value is not None and source.weight is None:
            raise DataError(f"sources: the {name} of {source.path!r} needs a weight to begin with, of all sources")
    if source.weight is not None and (source.weight < 0 or not (source.weight or source.weight_schedule)):
        raise DataError("sources: a weight must be above 0; leave out what is not to be read")
    if source.max_epochs is not None and not 0 < source.max_epochs < math.inf:
        raise DataError(f"sources: the max_epochs of {source.path!r} must be above 0, not {source.max_epochs}")
    if source.weight_schedule is None:
        return
    tokens = [0.0, *(at for at, _ in source.weight_schedule)]
    if not source.weight_schedule or not all(a < b < math.inf for a, b in pairwise(tokens)):
        raise DataError(
            f"sources: the weight_schedule of {source.path!r} must have points [tokens, weight] whose tokens grow from "
            f"above 0 on, not {source.weight_schedule}"
        )
    if any(not 0 <= weight < math.inf for _, weight in source.weight_schedule):
        raise DataError(f"sources: the weight_schedule of {source.path!r} has a weight below 0")


def is_scheduled(sources: Sequence[Source]) -> bool:
    """Whether the sources' shares change while they are read."""
    return any(source.weight_schedule is not None or source.max_epochs is not None for source in sources)


def scheduled(
    sources: Sequence[Source], num_rows: Sequence[int], seq_len: int, seed: int, period: int = 0
) -> MixtureOrder:
    """The order of a mixture.

    Args:
        sources: with their weights; the first of `num_rows`, which may have more rows of others.
        num_rows: of each source, and of what is added to them: that keeps the share of rows which it has.
        seq_len: tokens of a row, in which schedules count.
        seed: names the order.
        period: see `MixtureOrder`.
    """
    real = sum(num_rows[: len(sources)])
    total = sum(source.weight or 0.0 for source in sources)
    shares = []
    for source, rows in zip(sources, num_rows, strict=False):
        most = None if source.max_epochs is None else int(source.max_epochs * rows)
        shares.append(Share(rows, _points(source, seq_len), most))
    for rows in num_rows[len(sources) :]:
        shares.append(Share(rows, np.array([(0.0, total * rows / real)])))
    return MixtureOrder(shares, seed, period)


def scheduled_streams(sources: Sequence[Source], ends: Sequence[int | None], seq_len: int, seed: int) -> Mixture:
    """The mixture of streams, of which nobody knows how many rows they have.

    Args:
        sources: with their weights.
        ends: rows that each may give in all, where its end was read before; else None.
        seq_len, seed: see `scheduled`.
    """
    return Mixture([Share(0, _points(one, seq_len), end) for one, end in zip(sources, ends, strict=True)], seed)


def _points(source: Source, seq_len: int) -> np.ndarray:
    """(P, 2) of `Share.weight`."""
    later = [(at / seq_len, weight) for at, weight in source.weight_schedule or ()]
    return np.array([(0.0, source.weight or 0.0), *later])


def check_reweighable(sources: Sequence[Source] | None, who: str) -> None:
    """Raises `DataError` for sources whose shares `who` cannot move while they are read."""
    if sources is None or len(sources) < 2:
        raise DataError(
            f"sources: {who} moves shares between several of them, each with a weight; name them, or leave {who} out"
        )
    if any(source.weight is None for source in sources):
        raise DataError(f"sources: {who} begins with their weights, and moves them: give one to each")
    for source in sources:
        if source.weight_schedule is not None:
            raise DataError(
                f"sources: the weight_schedule of {source.path!r} and {who} would both say what its share is; leave "
                "one of them out"
            )


def tempered(num_rows: Sequence[int], temperature: float) -> list[float]:
    """Weights in proportion to the rows at temperature 1, and the more even the higher it is (arXiv:1907.05019)."""
    return [rows ** (1 / temperature) if rows else 0.0 for rows in num_rows]


def plan_in_words(order: MixtureOrder, names: Sequence[str], num_samples: int) -> list[str]:
    """Lines to print: what a run of so many samples reads.

    Raises:
        DataError: the sources are used up before.
    """
    counts = order.counts(num_samples)
    return [
        f"{name}: {count / num_samples:.1%} of the run's rows, {count / max(rows, 1):.2f} epochs"
        for name, count, rows in zip(names, counts.tolist(), order.num_rows.tolist(), strict=False)
    ]


def names_of(sources: Sequence[Source]) -> list[str]:
    """Short names of sources for metrics and tables, each another one."""
    names: list[str] = []
    for source in sources:
        parts = [part for part in Path(source.path).parts if not set("*?[") & set(part)]
        name = (parts[-1] if parts else source.path).split(".")[0] or "source"
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names
