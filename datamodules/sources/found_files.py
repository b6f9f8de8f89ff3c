"""What a local path holds: the files that are read, those of each split, and those that no reader knows."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from datamodules.errors import DataError
from datamodules.sources.formats import SUFFIXES, format_of
from datamodules.sources.splits import ALL, SAVED, TRAIN, UNNAMED, VALIDATION, splits_of

# `datasets.save_to_disk` and hub repositories keep these beside their data.
NOT_DATA = {"dataset_info.json", "dataset_infos.json", SAVED, "state.json", "config.json"}
ABOUT_DATA = {"readme", "license", "licence", "copying", "notice", "citation", "changelog", "authors", "contributing"}
"""Files of these names, by whatever suffix, are not what a folder is for."""


@dataclass(frozen=True)
class FoundFiles:
    """The files of a path.

    Args:
        path: as the user named it.
        splits: those that can be read, by split.
        unread: those of no known format.
        is_glob: whether the path is a pattern, which says itself what is wanted.
    """

    path: str
    splits: dict[str, list[str]]
    unread: list[str]
    is_glob: bool

    def of_split(self, split: str) -> list[str]:
        """The files to read for a split. For `train`, where no name tells it, those whose name tells no split.

        Raises:
            DataError: there are none, or it is not clear which.
        """
        if split == ALL:
            return sorted(file for files in self.splits.values() for file in files)
        if split in self.splits:
            if split == TRAIN:
                self._check_unnamed()
            return self.splits[split]
        if split == TRAIN and UNNAMED in self.splits:
            return self.splits[UNNAMED]
        if split == TRAIN and self.is_glob:
            return self.of_split(ALL)
        raise DataError(
            f"path: no file of {self.path!r} is for {split}, by their names ({self._counts(self.splits)}); name the"
            " files to read, or their split (sources: [{path: ..., split: ...}], where `all` takes every file)"
        )

    def _check_unnamed(self) -> None:
        unnamed = self.splits.get(UNNAMED, [])
        if _bytes(unnamed) > _bytes(self.splits[TRAIN]):
            raise DataError(
                f"path: in {self.path!r} the names of some files say that they are for training (such as"
                f" {_short(self.splits[TRAIN][0])}), and most do not (such as {_short(unnamed[0])}); name the files to"
                " read, or take every one with sources: [{path: ..., split: all}]"
            )

    def in_words(self, split: str, validates: bool) -> list[str]:
        """Lines about what is left out, as `sources.files_in_words`."""
        lines = []
        chosen = self.of_split(split)
        others = {name: files for name, files in self.splits.items() if files[0] not in chosen}
        if others:
            said = [f"{split}: {_files(chosen)}"]
            if validates and VALIDATION in others:
                said.append(f"{VALIDATION}: {_files(others.pop(VALIDATION))}")
            left = f"; left out: {self._counts(others)}" if others else ""
            lines.append(f"{self.path}: splits by the files' names: {', '.join(said)}{left}")
        if self.unread:
            lines.append(f"{self.path}: not read, as of no known format: {_suffixes(self.unread)}")
        return lines

    @staticmethod
    def _counts(splits: dict[str, list[str]]) -> str:
        return ", ".join(f"{split or 'no split'}: {_files(files)}" for split, files in splits.items())


def look(path: str) -> FoundFiles | None:
    """The files of a file, a folder or a glob; None where the path is none of these.

    Raises:
        DataError: there is nothing to be read, or most of what is there cannot be.
    """
    here = Path(path).expanduser()
    if here.is_dir():
        inside = sorted(str(file) for file in here.rglob("*") if file.is_file() and _visible(file, here))
        return _found(inside, path, here, is_glob=False)
    if here.exists():
        return _found([str(here)], path, here.parent, is_glob=True)
    if glob.has_magic(path):
        matches = glob.glob(str(here), recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        files = sorted(match for match in matches if Path(match).is_file())
        return _found(files, path, _literal_part(here), is_glob=True)
    return None


def _literal_part(pattern: Path) -> Path:
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))


def _visible(file: Path, folder: Path) -> bool:
    return file.name not in NOT_DATA and not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _found(files: list[str], path: str, base: Path, is_glob: bool) -> FoundFiles:
    known = [file for file in files if format_of(file)]
    unread = [file for file in files if not format_of(file) and not _about_data(file)]
    formats = f"{', '.join(SUFFIXES)} (text also as .gz, .zst)"
    if not files:
        raise DataError(f"path: {path!r} holds no files; it matches nothing that could be read")
    if not known:
        raise DataError(f"path: {path!r} holds none of {formats}; found {_suffixes(files)}")
    if _bytes(unread) > _bytes(file for file in known if not _about_data(file)):
        raise DataError(
            f"path: most of {path!r} is of no known format ({_suffixes(unread)}), which are {formats}; convert it, or"
            f" name the files to read, such as {str(base / '**' / ('*' + PurePath(known[0]).suffix))!r}"
        )
    if len(files) == 1 and is_glob:
        return FoundFiles(path, {UNNAMED: known}, unread, is_glob)
    return FoundFiles(path, splits_of(known, base), unread, is_glob)


def _about_data(file: str) -> bool:
    return PurePath(file).name.partition(".")[0].lower() in ABOUT_DATA


def _bytes(files: Iterable[str]) -> int:
    return sum(Path(file).stat().st_size for file in files)


def _suffixes(files: list[str]) -> str:
    found = Counter("".join(PurePath(file).suffixes[-2:]) or PurePath(file).name for file in files)
    return ", ".join(f"{suffix} ({count:,})" for suffix, count in found.most_common(5))


def _files(files: list[str]) -> str:
    return f"{len(files):,} file{'s' if len(files) > 1 else ''}"


def _short(file: str) -> str:
    return "/".join(PurePath(file).parts[-2:])
