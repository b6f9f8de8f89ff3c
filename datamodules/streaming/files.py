"""The files of a stream: URLs, local files and hub data sets, each as it is now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from datamodules.corpora import CORPORA, corpus_file
from datamodules.sources.discover import Source, find_files
from datamodules.sources.formats import FORMATS
from datamodules.sources.hub import hub_units
from datamodules.sources.units import Unit
from datamodules.streaming.patience import Patience
from datamodules.streaming.remote import find_remote, is_remote, local_unit
from llm_lightning_safety.seals import read_json


def files_of(paths: list[str], column: str, name: str | None, split: str, patience: float, root: Path) -> list[Unit]:
    """All files of some paths, in the order of the paths and then of their names, each told which column to read.

    Args:
        name, split: of hub data sets.
        patience: seconds; see `Patience`.
        root: the cache's folder.

    Raises:
        DataError: nothing is there, or a server does not answer.
    """
    units = [unit for path in paths for unit in _of_path(path, name, split, Patience(patience), root)]
    return [replace(unit, column=column) if FORMATS[unit.format].columns else unit for unit in units]


def _of_path(path: str, name: str | None, split: str, patience: Patience, root: Path) -> list[Unit]:
    if is_remote(path):
        return find_remote(path, patience)
    if path in CORPORA and not Path(path).exists():
        return [local_unit(str(corpus_file(path, root)))]
    files = find_files(Source(path, name=name, split=split))
    return hub_units(path, name, split, root) if files is None else [local_unit(file) for file in files]


def remembered(memo: Path) -> tuple[tuple[Unit, ...], tuple[Unit, ...]]:
    """What another process of this machine found: to train and to validate on."""
    train, val = read_json(memo)["found"]
    return tuple(Unit(**unit) for unit in train), tuple(Unit(**unit) for unit in val)
