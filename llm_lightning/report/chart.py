"""Where the lines and ticks of a chart lie, in SVG's coordinates; the template draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
"""Between the edges and the plot: room for labels."""

MOST_POINTS = 300
"""Of a line. More are joined to the lowest and the highest of their neighbours, so that no peak is lost."""


@dataclass(frozen=True)
class Line:
    """A curve of a chart.

    Args:
        label: in the legend; "" for one that stands in no legend.
        x, y: points, x in order.
        color: number of the palette.
        kind: `main`, `faint` (behind the main one) or `dotted`, with its points marked.
        name: shown with its value under the pointer; "" for one that is not.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    color: int
    kind: str = "main"
    name: str = ""


@dataclass(frozen=True)
class DrawnLine:
    """A line in SVG's coordinates."""

    label: str
    path: str
    dots: list[tuple[float, float]]
    color: int
    kind: str
    name: str


@dataclass(frozen=True)
class Chart:
    """What the template needs of a chart.

    Args:
        title: what it shows.
        x_label: of the axis below.
        lines: drawn ones.
        x_ticks, y_ticks: places and labels.
        x_range, y_range: values at the plot's edges, to find a point's value by its place.
        description: the chart in words, for those who do not see it.
    """

    title: str
    x_label: str
    lines: list[DrawnLine]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    description: str
    legend: list[DrawnLine] = field(default_factory=list)


def draw(
    title: str,
    x_label: str,
    lines: Sequence[Line],
    settled_from: float = 0.0,
    from_zero: bool = False,
    x_from: float = 0.0,
) -> Chart:
    """Lay out a chart.

    Args:
        title: what it shows.
        x_label: of the axis below.
        lines: with at least one point in all.
        settled_from: share of the x axis in front of which points do not stretch the y axis: a loss begins so high that
            all the rest would be flat.
        from_zero: whether the y axis begins at 0 where no value is below.
        x_from: where the x axis begins, if no point is before.
    """
    xs = np.concatenate([line.x for line in lines])
    x_range = (min(x_from, float(xs.min())), float(xs.max()) or 1.0)
    y_range = _y_range(lines, x_range[1] * settled_from, from_zero)
    drawn = [_drawn(line, x_range, y_range) for line in lines if len(line.x)]
    x_ticks = [(_place(tick, x_range, LEFT, WIDTH - RIGHT), short(tick)) for tick in ticks(*x_range, 5)]
    places = ticks(*y_range, 5)
    decimals = _decimals(places)
    y_ticks = [(_place(tick, y_range, HEIGHT - BOTTOM, TOP), short(tick, decimals)) for tick in places]
    named = [line for line in drawn if line.label]
    return Chart(
        title, x_label, drawn, x_ticks, y_ticks, x_range, y_range, _description(title, x_label, lines),
        legend=named if any(line.label != title for line in named) else [],
    )  # fmt: skip


def smoothed(y: np.ndarray) -> np.ndarray:
    """Mean over a window around each point, a fiftieth of the points to each side; a trailing mean would lag behind."""
    reach = len(y) // 50
    sums = np.concatenate([[0.0], np.cumsum(y)])
    index = np.arange(len(y))
    begin, end = np.maximum(0, index - reach), np.minimum(len(y), index + reach + 1)
    return (sums[end] - sums[begin]) / (end - begin)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers within a range, about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float, decimals: int | None = None) -> str:
    """A number that fits beside an axis: 12k, 3.5M, 0.25, 3e-4."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        digits, _, power = f"{value:.2g}".partition("e")
        return f"{digits}e{int(power)}" if power else digits
    return f"{value:.4g}" if decimals is None else f"{value:.{decimals}f}"


def _decimals(places: Sequence[float]) -> int | None:
    """That all ticks are written with, so that they stand below each other."""
    if not places or max(map(abs, places)) >= 1000:
        return None
    return next((n for n in range(5) if all(abs(p * 10**n - round(p * 10**n)) < 1e-6 * 10**n for p in places)), None)


def _y_range(lines: Sequence[Line], begin: float, from_zero: bool) -> tuple[float, float]:
    counted = [line.y[line.x >= begin] for line in lines]
    ys = np.concatenate([y for y in counted if len(y)] or [line.y for line in lines])
    low, high = float(ys.min()), float(ys.max())
    if from_zero and low >= 0:
        return 0.0, high * 1.06 or 1.0
    margin = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


def _drawn(line: Line, x_range: tuple[float, float], y_range: tuple[float, float]) -> DrawnLine:
    x, y = _thinned(line.x, line.y)
    across = _places(x, x_range, LEFT, WIDTH - RIGHT)
    # A value far outside would be drawn across the whole page where nothing clips it.
    up = np.clip(_places(y, y_range, HEIGHT - BOTTOM, TOP), -HEIGHT, 2 * HEIGHT)
    points = [(round(float(a), 1), round(float(b), 1)) for a, b in zip(across, up, strict=True)]
    path = "M" + "L".join(f"{a:g} {b:g}" for a, b in points)
    is_marked = (line.kind == "dotted" and len(points) <= 60) or len(points) == 1
    return DrawnLine(line.label, path, points if is_marked else [], line.color, line.kind, line.name)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= MOST_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MOST_POINTS // 2 + 1).astype(int)
    pairs = pairwise(edges)
    kept = sorted({i for a, b in pairs for i in (a + int(y[a:b].argmin()), a + int(y[a:b].argmax()))} | {len(x) - 1})
    return x[kept], y[kept]


def _place(value: float, span: tuple[float, float], begin: float, end: float) -> float:
    return round(float(_places(np.array([value]), span, begin, end)[0]), 1)


def _places(values: np.ndarray, span: tuple[float, float], begin: float, end: float) -> np.ndarray:
    return begin + (values - span[0]) / ((span[1] - span[0]) or 1.0) * (end - begin)


def _description(title: str, x_label: str, lines: Sequence[Line]) -> str:
    ends = [
        f"{line.label or title} {line.y[0]:.4g} to {line.y[-1]:.4g}" for line in lines if len(line.y) and line.label
    ]
    return f"{title} over {x_label}: {'; '.join(ends)}"
