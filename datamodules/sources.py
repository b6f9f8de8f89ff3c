"""Opening anything: a path, a folder, a glob, an embedded corpus or a hub data set becomes units of work."""

import glob
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from datamodules.cache import content_digest
from datamodules.corpora import CORPORA, corpus_file
from datamodules.errors import DataError
from datamodules.formats import FORMATS, SUFFIXES, format_of
from datamodules.hub import hub_units
from datamodules.units import Unit

# `datasets.save_to_disk` and hub repositories keep these beside their data.
NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}
FILES_PEEKED = 8  # enough to see a wrong column or encoding before long work begins
BYTES_WORTH_A_BAR = 2 << 30  # less is hashed in a second or two
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """One thing to learn from.

    Args:
        path: a file, a folder, a glob, an embedded corpus (such as `python_docs`), or a hub data set (`owner/name`).
        weight: this source's share of the rows, relative to the other sources' weights. None for all sources: every
            row once an epoch.
        name: the hub data set's configuration, where it has several.
        split: the hub data set's split.
    """

    path: str
    weight: float | None = None
    name: str | None = None
    split: str = "train"


def find_files(source: Source) -> list[str] | None:
    """The source's files, sorted; None where the path names no file (an embedded corpus or a hub data set).

    Raises:
        DataError: the path does not exist, matches nothing, or holds no file of a known format.
    """
    path = Path(source.path).expanduser()
    # A saved `datasets.DatasetDict` is a folder of splits: reading them all would mix test into train.
    has_splits = (path / "dataset_dict.json").exists()
    if path.exists() and (source.name is not None or (source.split != "train" and not has_splits)):
        raise DataError(f"name and split: they choose from a hub data set, and {source.path!r} is a local path")
    if path.is_dir():
        folder = path / source.split if has_splits else path
        inside = sorted(str(file) for file in folder.rglob("*") if file.is_file() and _visible(file, folder))
        return _known(inside, source.path)
    if path.exists():
        return _known([str(path)], source.path)
    if glob.has_magic(source.path):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        return _known(sorted(match for match in matches if Path(match).is_file()), source.path)
    if source.path in CORPORA or (HUB_ID.fullmatch(source.path) and not format_of(source.path)):
        return None
    hint = "" if "/" in source.path or format_of(source.path) else f"; embedded corpora: {', '.join(CORPORA)}"
    raise DataError(f"path: {source.path!r} does not exist (looked in {Path.cwd()}){hint}")


def _visible(file: Path, folder: Path) -> bool:
    return file.name not in NOT_DATA and not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _known(files: list[str], path: str) -> list[str]:
    known = [file for file in files if format_of(file)]
    if known:
        return known
    if not files:
        raise DataError(f"path: {path!r} holds no files; it matches nothing that could be read")
    found = Counter("".join(Path(file).suffixes[-2:]) or Path(file).name for file in files)
    names = ", ".join(f"{suffix} ({count})" for suffix, count in found.most_common(5))
    raise DataError(f"path: {path!r} holds none of {', '.join(SUFFIXES)} (text also as .gz, .zst); found {names}")


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
