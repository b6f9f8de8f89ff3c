"""Progressive pruning: one callback, made of a schedule, a criterion and a structure."""

from callbacks.pruning.callback import Pruning
from callbacks.pruning.criteria import Criterion, Magnitude, Movement, Taylor, Wanda
from callbacks.pruning.schedules import Constant, Cubic, Linear, OneShot, PruningSchedule, Regrow
from callbacks.pruning.sparse_gpt import SparseGPT
from callbacks.pruning.structured import Structured
from callbacks.pruning.structures import NM, Structure, Unstructured

__all__ = [
    "NM",
    "Constant",
    "Criterion",
    "Cubic",
    "Linear",
    "Magnitude",
    "Movement",
    "OneShot",
    "Pruning",
    "PruningSchedule",
    "Regrow",
    "SparseGPT",
    "Structure",
    "Structured",
    "Taylor",
    "Unstructured",
    "Wanda",
]
