"""Opening anything: a path, a folder, a glob, an embedded corpus or a hub data set becomes units of work."""

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self, TypeVar

from tqdm import tqdm

from datamodules.cache import content_digest
from datamodules.corpora import CORPORA, corpus_file
from datamodules.errors import DataError
from datamodules.sources.formats import FORMATS, format_of
from datamodules.sources.found_files import FoundFiles, look
from datamodules.sources.hub import hub_units
from datamodules.sources.splits import TEST, TRAIN, VALIDATION
from datamodules.sources.units import Unit

BYTES_WORTH_A_BAR = 2 << 30  # less is hashed in a second or two
FILES_PEEKED = 8  # enough to see a wrong column or encoding before long work begins
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """One thing to train on.

    Args:
        path: a file, a folder, a glob, an embedded corpus (such as `python_docs`), or a hub data set (`owner/name`).
        weight: this source's share of the rows, relative to the other sources' weights. None for all sources: every
            row once an epoch.
        name: the hub data set's configuration, where it has several.
        split: the split to read, of a hub data set, or of a folder or glob whose files' names tell their splits (see
            `splits_of`). `all` reads every file. By default `train`: what is for validation or testing is left out.
        weight_schedule: how the weight goes on: points of trained tokens and the weight there, `[[1e9, 1], [2e9, 4]]`.
            It begins at `weight`, is linear between points, and stays at the last one.
        max_epochs: how often its rows are trained on at most; then the other sources take this one's share.
    """

    path: str
    weight: float | None = None
    name: str | None = None
    split: str = "train"
    weight_schedule: list[tuple[float, float]] | None = None
    max_epochs: float | None = None

    @cached_property
    def found(self) -> FoundFiles | None:
        """What there is at the path, looked for once; see `look`."""
        return look(self.path)

    def of_split(self, split: str, weight: float | None = None) -> Self:
        """Another split of what was found."""
        other = replace(self, split=split, weight=weight)
        object.__setattr__(other, "found", self.found)
        return other


S = TypeVar("S", bound=Source)


def paths_of(path: str | list[str] | None) -> list[str]:
    """What a setting names: one path, several, or none."""
    return [path] if isinstance(path, str) else list(path or [])


def find_files(source: Source) -> list[str] | None:
    """The source's files, sorted; None where the path names no file (an embedded corpus or a hub data set).

    Raises:
        DataError: the path does not exist, matches nothing, holds no file of a known format, or has not the split.
    """
    if source.name is not None and Path(source.path).expanduser().exists():
        raise DataError(f"name: it chooses from a hub data set, and {source.path!r} is a local path")
    found = source.found
    if found is None:
        if source.path in CORPORA or (HUB_ID.fullmatch(source.path) and not format_of(source.path)):
            return None
        hint = "" if "/" in source.path or format_of(source.path) else f"; embedded corpora: {', '.join(CORPORA)}"
        raise DataError(f"path: {source.path!r} does not exist (looked in {Path.cwd()}){hint}")
    return found.of_split(source.split)


def sources_to_validate_on(train: Sequence[S], named: Sequence[S] | None, share: float | None) -> list[S]:
    """What there is for validation alone; where nothing is, a share of what is trained on validates.

    Args:
        train: what is trained on; its files whose names say that they are for validation.
        named: what was named for validation: its files for validation, else those for testing, else what is there.
        share: the share that was asked for, which leaves the files of `train` for validation out.
    """
    if named is not None:
        return [_to_validate_on(source) for source in named]
    found = [_validation_of(source) for source in train] if share is None else []
    return [source for source in found if source is not None]


def _validation_of(source: S) -> S | None:
    has_own = source.split == TRAIN and source.found is not None and VALIDATION in source.found.splits
    return source.of_split(VALIDATION) if has_own else None


def _to_validate_on(source: S) -> S:
    splits = source.found.splits if source.found is not None else {}
    split = next((split for split in (VALIDATION, TEST) if split in splits), source.split)
    return source.of_split(split, source.weight)


def files_in_words(sources: Iterable[Source], validates: bool) -> list[str]:
    """Lines to print: which of the sources' files are left out.

    Args:
        validates: whether the files for validation validate.
    """
    found = [(source.found, source.split) for source in sources]
    return [line for files, split in found if files is not None for line in files.in_words(split, validates)]


def resolve(source: Source, root: Path, look_again: bool = True) -> list[Unit]:
    """Everything there is to read in a source, in an order that depends on names alone.

    Args:
        root: the cache's folder.
        look_again: False: take a hub data set as it was found last, so that all ranks see the same one.

    Raises:
        DataError: nothing is there, or it is empty.
    """
    files = find_files(source)
    if files is None and source.path not in CORPORA:
        return hub_units(source.path, source.name, source.split, root, look_again)
    files = _not_empty(files or [str(corpus_file(source.path, root))], source)
    small = sum(Path(file).stat().st_size for file in files) < BYTES_WORTH_A_BAR
    with ThreadPoolExecutor() as pool:
        hashing = pool.map(lambda file: content_digest(Path(file), root), files)
        digests = list(tqdm(hashing, desc="Looking for changes", total=len(files), unit="file", disable=small))
    return [unit for file, digest in zip(files, digests, strict=True) for unit in _cut(file, digest)]


def first_units(source: Source, root: Path) -> list[Unit]:
    """The first unit of each of a source's first files, without looking at the rest; none of what is not a file.

    Raises:
        DataError: as `resolve`.
    """
    files = find_files(source)
    if files is None:
        if source.path not in CORPORA:
            hub_units(source.path, source.name, source.split, root)
        return []
    return [unit for file in _not_empty(files, source)[:FILES_PEEKED] for unit in _cut(file, "")[:1]]


def _not_empty(files: list[str], source: Source) -> list[str]:
    files = [file for file in files if Path(file).stat().st_size > 0]
    if not files:
        raise DataError(f"path: {source.path!r} is empty; it must hold some text")
    return files


def _cut(file: str, digest: str) -> list[Unit]:
    kind = format_of(file)
    assert kind is not None
    ranges = FORMATS[kind].split(file)
    return [Unit(file, kind, digest, start, stop, size) for start, stop, size in ranges]
