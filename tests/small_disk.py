"""A file system so small that it is soon full."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def mount_small_disk() -> Iterator[Callable[[Path, str], Path]]:
    """Mount one of a size such as `400k` at a folder; skips without the right to."""
    places = []

    def mount(place: Path, size: str) -> Path:
        place.mkdir(parents=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=False).returncode:
            pytest.skip("mounting a file system needs root")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", place], check=True)
