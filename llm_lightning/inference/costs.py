"""What answers cost in time and in energy, kept beside them."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from callbacks.monitoring.energy_counters import POWERCAP, find_counters
from datamodules.synthetic.engine import Engine
from llm_lightning.rollouts import LocalEngine
from llm_lightning_safety.files import open_unlinked


@dataclass(frozen=True)
class Cost:
    """Of a token, a mean over all that were measured.

    Args:
        seconds: of the process that wrote it, which writes many at the same time.
        joules: of this machine's processors and the process's graphics card; None: not measured.
    """

    seconds: float
    joules: float | None


@dataclass
class Meter:
    """What was written so far.

    Args:
        tokens: of new texts.
    """

    tokens: int = 0


@contextmanager
def metered(engine: Engine, path: Path, is_alone: bool, powercap: Path = POWERCAP) -> Iterator[Meter]:
    """Note what an engine's texts cost, once the block within is over.

    Energy is measured for a model in this process, where it has the machine for itself: a processor's counter cannot
    tell processes apart.

    Args:
        engine: what writes.
        path: the file of notes, which gets a line. What a killed process was about is not in it, neither its tokens nor
            their cost.
        is_alone: whether no other process of the same work runs on this machine.
        powercap: where the processors' counters lie.
    """
    counters = find_counters(engine.device, powercap)[0] if isinstance(engine, LocalEngine) and is_alone else []
    meter, started = Meter(), time.monotonic()
    yield meter
    if not meter.tokens:
        return
    seconds = time.monotonic() - started
    joules = sum(counter.joules() for counter in counters) if counters else None
    note = {"model": engine.model, "tokens": meter.tokens, "seconds": seconds, "joules": joules}
    with open_unlinked(path, "a") as file:
        file.write(json.dumps(note) + "\n")


def cost_of(paths: Sequence[Path], model: str) -> Cost | None:
    """The mean cost of a model's tokens; None where nothing was measured.

    Args:
        paths: of notes; some may be missing.
        model: of the engine.
    """
    notes = [note for path in paths if path.exists() for note in _notes(path) if note["model"] == model]
    tokens = sum(note["tokens"] for note in notes)
    if not tokens:
        return None
    joules = [note["joules"] for note in notes]
    whole = None if None in joules else sum(joules) / tokens
    return Cost(sum(note["seconds"] for note in notes) / tokens, whole)


def _notes(path: Path) -> Iterator[dict[str, Any]]:
    with open_unlinked(path, "r") as file:
        for line in file:
            with suppress(ValueError):  # a part of a line, which a killed process left
                yield json.loads(line)
