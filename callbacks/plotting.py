"""How all pictures of a run look. matplotlib is imported where something is drawn: it takes half a second."""

from pathlib import Path
from typing import Any

from llm_lightning_safety.files import atomic_file

BLUE, RED, GREEN, INK, GRID = "#7aa6d6", "#d1495b", "#2a9d5c", "#333333", "#e6e6e6"
TRAIN, VALIDATION = BLUE, RED


def new_figure(width: float, height: float) -> Any:
    """An empty `matplotlib.figure.Figure` of so many inches, without a window and without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def set_title(axes: Any, title: str, size: int = 11) -> None:
    """What axes show, above them to the left."""
    axes.set_title(title, fontsize=size, loc="left", color=INK)


def set_legend(axes: Any) -> None:
    """Names of the lines that have a label."""
    axes.legend(frameon=False, fontsize=9)


def style(axes: Any) -> None:
    """A light grid behind what is drawn, and no frame."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=INK, length=0)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)


def save_figure(figure: Any, picture: Path) -> None:
    """Write the PNG, by one rename."""
    with atomic_file(picture) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
