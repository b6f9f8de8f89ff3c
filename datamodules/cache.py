"""The data cache: everything in it is named by the content it was made from, so nothing in it is ever stale."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from datamodules.errors import DataError
from llm_lightning_safety.files import atomic_folder
from llm_lightning_safety.seals import is_whole, read_json, seal_folder, write_json

SECONDS_BEFORE_WAITING_IS_ANNOUNCED = 2
SECONDS_UNTIL_A_FILE_RESTS = 2


def cache_root(cache_dir: str | None) -> Path:
    """The cache's folder: `cache_dir`, else `$LLM_LIGHTNING_CACHE`, else `~/.cache/llm-lightning`."""
    chosen = cache_dir or os.environ.get("LLM_LIGHTNING_CACHE") or "~/.cache/llm-lightning"
    return Path(chosen).expanduser().resolve()


def key_of(*parts: object) -> str:
    """A short name for what was made from `parts` (anything JSON can write)."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def content_digest(path: Path, root: Path) -> str:
    """The digest of a file's bytes, remembered so that a big file is read once.

    What is remembered counts as long as size, inode and both times of change are the same; the time of the inode's
    change is set by the system alone. A file that changed within the last seconds may change again in the same tick of
    the clock, so nothing is remembered of it.
    """
    path = path.resolve()
    stat = path.stat()
    seen = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
    memo = root / "digests" / f"{key_of(str(path))}.json"
    with contextlib.suppress(FileNotFoundError, ValueError):
        known = read_json(memo)
        if known["seen"] == seen:
            return known["digest"]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    if time.time() - stat.st_ctime > SECONDS_UNTIL_A_FILE_RESTS:
        write_json(memo, {"path": str(path), "seen": seen, "digest": digest})
    return digest


@contextlib.contextmanager
def room_on_disk(root: Path) -> Iterator[None]:
    """A full disk in the block becomes a message that names the cache's folder; raises `DataError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(f"cache_dir: the disk of {root} is full; make room or name another") from error


def remove_leftovers(folder: Path) -> None:
    """Deletes what killed processes left half written; call it under the folder's lock."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


@contextlib.contextmanager
def build_lock(folder: Path, what: str) -> Iterator[None]:
    """Holds `folder` for one process at a time, across the nodes that share a disk; says so when it has to wait."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=SECONDS_BEFORE_WAITING_IS_ANNOUNCED)
    except Timeout:
        print(f"Another process is building {what}; waiting for it ({lock.lock_file})", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def made_folder(folder: Path, what: str, make: Callable[[Path], object], closely: bool = True) -> Path:
    """A folder of the cache; it is made where it is missing, and anew where it is not as it was written, which a line
    then says.

    Args:
        folder: where it is; its name stands for its content.
        what: it holds, in words.
        make: writes its files into a folder, the same ones each time.
        closely: compare checksums, and not lengths alone.

    Raises:
        DataError: the disk is full.
    """
    if not is_whole(folder, closely):
        with build_lock(folder.parent, what), room_on_disk(folder.parent):
            remove_leftovers(folder.parent)
            if not is_whole(folder, closely):
                say_damaged(folder, what)
                with atomic_folder(folder) as temporary:
                    make(temporary)
                    seal_folder(temporary)
                    shutil.rmtree(folder, ignore_errors=True)
    return folder


def say_damaged(path: Path, what: str) -> None:
    """A line that what is there is made anew, where something is."""
    if path.exists():
        print(f"{path} ({what}) is not as it was written: it is made anew", file=sys.stderr, flush=True)
