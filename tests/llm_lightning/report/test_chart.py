"""Where charts' lines and ticks lie."""

import numpy as np
import pytest

from llm_lightning.report.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    draw,
    short,
    smoothed,
    ticks,
)


def points(path):
    return [tuple(map(float, pair.split())) for pair in path.removeprefix("M").split("L")]


def line(y, x=None, kind="main"):
    y = np.asarray(y, float)
    return Line("a", np.arange(len(y), dtype=float) if x is None else np.asarray(x, float), y, 0, kind)


def test_a_line_fills_the_plot():
    chart = draw("loss", "steps", [line([0, 1, 2], x=[0, 5, 10])], from_zero=True)
    first, middle, last = points(chart.lines[0].path)
    assert first == (LEFT, HEIGHT - BOTTOM) and last[0] == WIDTH - RIGHT and TOP < last[1] < middle[1]
    assert chart.x_range == (0, 10) and chart.y_range == pytest.approx((0, 2.12))
    assert [label for _, label in chart.x_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert chart.description == "loss over steps: a 0 to 2"


def test_the_first_losses_do_not_flatten_the_rest():
    losses = np.concatenate([[90.0, 40.0], np.linspace(3, 2, 198)])
    assert draw("loss", "steps", [line(losses)], settled_from=0.03).y_range[1] < 3.2
    assert draw("loss", "steps", [line(losses)]).y_range[1] > 90


def test_a_long_line_keeps_its_peaks():
    y = np.zeros(100_000)
    y[77_777], y[33_333] = 5, -3
    chart = draw("x", "steps", [line(y)])
    drawn = points(chart.lines[0].path)
    assert len(drawn) <= MOST_POINTS + 1
    assert min(b for _, b in drawn) < 25 and max(b for _, b in drawn) > HEIGHT - BOTTOM - 15


def test_points_are_marked_where_there_are_few():
    assert len(draw("x", "steps", [line([1, 2], kind="dotted")]).lines[0].dots) == 2
    assert len(draw("x", "steps", [line([1])]).lines[0].dots) == 1  # a line of one point would not be seen
    assert draw("x", "steps", [line(np.arange(200), kind="dotted")]).lines[0].dots == []


@pytest.mark.parametrize("y", [[5, 5, 5], [0, 0], [1e-30, 2e-30], [-1e12, 1e12], [1e300, -1e300]])
def test_every_range_can_be_drawn(y):
    chart = draw("x", "steps", [line(y)])
    assert all(np.isfinite(points(chart.lines[0].path)).ravel()) and chart.y_ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (2.31, 2.34, [2.31, 2.32, 2.33, 2.34]),
        (0, 244_525, [0, 50_000, 100_000, 150_000, 200_000]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (12_000, "12k"), (3.5e6, "3.5M"), (3e-4, "0.0003"), (-2.5e-5, "-2.5e-5"), (150, "150")],
)
def test_numbers_beside_an_axis(value, text):
    assert short(value) == text


def test_smoothing_is_a_mean_over_neighbours():
    y = np.random.default_rng(0).normal(size=200)
    expected = [y[max(0, i - 4) : i + 5].mean() for i in range(200)]
    assert smoothed(y) == pytest.approx(expected)
