"""Files behind URLs: which ones there are, whether they are what they were, and copies of them on disk.

Every file system that fsspec knows: s3://, gs://, hf://, http://, https:// and others. Keys come from the environment,
as each one's own documentation says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from datamodules.cache import key_of
from datamodules.errors import DataError
from datamodules.sources.formats import SUFFIXES, format_of
from datamodules.sources.splits import TRAIN, UNNAMED, splits_of
from datamodules.sources.units import Unit
from datamodules.streaming.patience import Patience

CHUNK_BYTES = 16 << 20  # asked for at once, and held
ASKED_AT_ONCE = 16  # files
# What the file systems say of a file beside its size; any of it that differs says that the file is another one.
MARKS = (
    "ETag", "etag", "Content-MD5", "md5Hash", "Digest", "generation", "blob_id", "Last-Modified", "LastModified",
    "last_modified", "updated", "mtime", "ino",
)  # fmt: skip
EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


def public(url: str) -> str:
    """The URL without user, password and query, which may be secret; a path as it is."""
    if not is_remote(url):
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def find_remote(url: str, patience: Patience) -> list[Unit]:
    """The files of a URL: it names one, a folder, or many by `*`. Of those whose names tell splits, the training ones.

    Raises:
        DataError: there are none, none of a known format, or the server does not answer.
    """
    system, path = _open(url, patience)
    found = patience.call(public(url), lambda: _listed(system, path), timed=False)
    urls = sorted(system.unstrip_protocol(name) for name in found)
    known = [each for each in urls if format_of(public(each))]
    if not known:
        what = f"; found {len(urls):,} files, such as {public(urls[0])}" if urls else ""
        raise DataError(f"path: {public(url)} holds none of {', '.join(SUFFIXES)} (text also as .gz, .zst){what}")
    if len(known) > 1:
        names = {_within_all(each): each for each in known}
        splits = splits_of(list(names), Path("/"))
        chosen = splits.get(TRAIN) or splits.get(UNNAMED) or list(names)
        known = [names[name] for name in chosen]
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return list(pool.map(lambda each: _unit(each, patience), known))


def _within_all(url: str) -> str:
    return str(PurePosixPath("/", urlsplit(url).netloc.rpartition("@")[2], urlsplit(url).path.lstrip("/")))


def _listed(system: Any, path: str) -> list[str]:
    if "*" in path:
        return [name for name in system.glob(path) if format_of(public(name))]
    if not format_of(public(path)) and system.isdir(path):
        return list(system.find(path))
    return [path]


def _open(url: str, patience: Patience) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    import aiohttp
    from fsspec.core import url_to_fs

    scheme = url.split("://", 1)[0]
    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        # By default a whole reply may take five minutes, however much it brings.
        wait = patience.of_a_call
        options = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=wait, sock_read=wait)}}
    try:
        return url_to_fs(url, **options)
    except ImportError as error:
        package = EXTRAS.get(scheme)
        how = "pip install 'llm-lightning[s3]'" if package == "s3fs" else f"pip install {package}" if package else error
        raise DataError(f"path: to read {scheme}://, install what fsspec needs for it: {how}") from None
    except ValueError as error:
        raise DataError(f"path: {public(url)}: {error}") from None


def _unit(url: str, patience: Patience) -> Unit:
    size, mark = _state(url, patience)
    kind = format_of(public(url))
    assert kind is not None
    return Unit(url, kind, mark, size=size)


def local_unit(path: str) -> Unit:
    """A file of this machine, which is read where it is."""
    stat = Path(path).stat()
    kind = format_of(path)
    assert kind is not None
    return Unit(path, kind, mark_of(stat.st_size, stat.st_mtime_ns), size=stat.st_size)


def mark_of(size: int, mtime_ns: int) -> str:
    """What names a local file as it is now."""
    return key_of(size, mtime_ns)


def _state(url: str, patience: Patience) -> tuple[int, str]:
    """A file's size, and what names it as it is now."""
    system, path = _open(url, patience)

    def ask() -> dict[str, Any]:
        system.invalidate_cache(path)
        return system.info(path)

    info = patience.call(public(url), ask)
    if info.get("size") is None:
        raise DataError(f"path: {public(url)}: the server does not say how long it is, so that no cut would be noticed")
    return info["size"], key_of(info["size"], {name: str(info[name]) for name in MARKS if info.get(name) is not None})


def check_unchanged(unit: Unit, patience: Patience) -> None:
    """Raises `DataError` where a file is no longer what it was when the stream was begun."""
    if unit.format == "hub":  # at a pinned revision
        return
    if is_remote(unit.path):
        size, mark = _state(unit.path, patience)
    else:
        try:
            now = local_unit(unit.path)
        except FileNotFoundError:
            raise DataError(f"path: {unit.path} is gone since this stream was begun: put it back") from None
        size, mark = now.size, now.digest
    if mark != unit.digest:
        what = f"it had {unit.size:,} bytes and has {size:,}" if size != unit.size else "its ETag or time is another"
        raise changed(unit, what)


def changed(unit: Unit, what: str) -> DataError:
    """The error for a file that is not what it was."""
    return DataError(
        f"path: {public(unit.path)} has changed since this stream was begun ({what}), so that a place in it means"
        " nothing: put the former file back, or begin another run"
    )


def fetch(unit: Unit, copy: Path, patience: Patience) -> None:
    """Copies a file to disk; a call that fails is repeated from where it stopped.

    Raises:
        DataError: it has changed, or the server does not answer.
    """
    check_unchanged(unit, patience)
    system, path = _open(unit.path, patience)
    try:
        with copy.open("wb") as file:
            while (at := file.tell()) < unit.size:
                stop = min(at + CHUNK_BYTES, unit.size)
                file.write(patience.call(public(unit.path), _reading(system, path, at, stop)))
    except ValueError as error:
        if "range requests" not in str(error):
            raise
        _fetch_whole(unit, copy, patience)
    check_unchanged(unit, patience)


def _reading(system: Any, path: str, start: int, stop: int) -> Callable[[], bytes]:
    def read() -> bytes:
        with system.open(path, "rb", cache_type="none") as file:
            file.seek(start)
            data = file.read(stop - start)
        if len(data) < stop - start:
            raise EOFError(f"cut off after {start + len(data):,} bytes")
        return data

    return read


def _fetch_whole(unit: Unit, copy: Path, patience: Patience) -> None:
    """From a server that cannot begin in the middle: each try begins anew."""
    system, path = _open(unit.path, patience)

    def get() -> None:
        system.get_file(path, str(copy))
        if (size := copy.stat().st_size) != unit.size:
            raise EOFError(f"cut off after {size:,} bytes")

    patience.call(public(unit.path), get, timed=False)


def digest_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
