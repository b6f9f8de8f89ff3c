"""Whether a file that torch wrote is still what was written: torch notes a checksum of each part, and looks at none."""

import os
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from llm_lightning.errors import UserError

_whole: dict[tuple[Path, int | None], tuple[int, int]] = {}


def check_file(path: Path) -> None:
    """Compare a checkpoint's checksums, once in a process: 1 GB in a second, or less on several cores.

    Raises:
        UserError: it is cut, or a bit of it is another than was written.
        OSError: it cannot be read.
    """

    def check() -> None:
        with path.open("rb") as file:
            check_stream(file, str(path))

    once(path, check)


def once(path: Path, check: Callable[[], None], offset: int | None = None) -> None:
    """Call a check that raises, where it has not passed in this process since the file was last written.

    Args:
        path: the file.
        check: what looks at it.
        offset: where in the file the part begins that is looked at; None: at all of it.
    """
    stat = path.stat()
    seen = (stat.st_size, stat.st_mtime_ns)
    if _whole.get((path, offset)) != seen:
        check()
        _whole[path, offset] = seen


def check_stream(file: IO[bytes], name: str) -> None:
    """As `check_file`, for one that is open.

    Args:
        file: begins and ends with what torch wrote.
        name: for the message.
    """
    try:
        with zipfile.ZipFile(file) as archive, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            list(pool.map(lambda entry: _read(archive, entry), entries))
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError, KeyError) as error:
        raise UserError(f"{name} is damaged, by its length or its checksums: {error}") from error


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    with archive.open(entry) as part:
        while part.read(2**22):  # which compares the checksum at its end
            pass
