"""Writing and reading in folders that a stranger may have made: no link in them is followed."""

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

MOST_DIGITS = 300
ADVICE = "is a link: remove it, or put what it points to in its place"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place only if the block ends well.

    A link at `path` is replaced, and what it points to is left alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a new temporary folder beside `path`, which takes its place only if the block ends well.

    At `path` there may be an empty folder.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Puts a text in the place of a file, as `atomic_file` does."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def open_unlinked(path: Path, mode: str, **options: Any) -> IO[Any]:
    """`open` for reading, appending and changing in place; raises `OSError` for a link or what is no file."""
    return open(path, mode, opener=_unlinked, **options)


def read_text(path: Path, most: int = 2**20) -> str:
    """A small file's text; raises `OSError` for a link, for what is no file, and for one of more than `most` bytes."""
    with open_unlinked(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"has more than {most} bytes", str(path))
    return data.decode(errors="replace")


def parse_json(text: str) -> Any:
    """What a JSON text holds; raises `ValueError` for one that is none, that is nested too deeply, or that holds an
    integer that no float does: whatever calculates with it would fail.
    """
    try:
        return json.loads(text, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it holds an integer of {len(digits)} digits")
    return int(digits)


def _unlinked(path: str, flags: int) -> int:
    # Without O_NONBLOCK a pipe would wait for its other end.
    try:
        descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, ADVICE, path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no file", path)
    return descriptor


def make_folder(folder: Path) -> None:
    """Makes a folder within a run folder where it is missing; raises `OSError` where it is a link."""
    if folder.is_symlink():
        raise OSError(errno.ELOOP, ADVICE, str(folder))
    folder.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Removes a file, a folder, or a link without what it points to, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def links_out_of(root: Path) -> Iterator[Path]:
    """The links below a folder that lead out of it. The folder itself may be a link."""
    inside = root.resolve()
    waiting = [inside]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_symlink() and not _target(Path(entry.path)).is_relative_to(inside):
                    yield Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


def _target(link: Path) -> Path:
    try:
        return link.resolve()
    except (OSError, RuntimeError):  # in a circle
        return Path(os.sep)


def is_plain_name(text: str) -> bool:
    """Whether a text can be an id or the name of one file: letters, digits, `-`, `_` and `.`, at most 128."""
    return re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}", text) is not None


def follow_umask(folder: Path) -> None:
    """Let who may read the other files in `folder` read its weights: safetensors writes them for their owner alone."""
    probe = folder / ".umask"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)
