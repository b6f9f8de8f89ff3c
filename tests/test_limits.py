"""The limits that CONTRIBUTING.md sets to files and folders."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("llm_lightning", "llm_lightning_safety", "callbacks", "datamodules")
MOST_LINES, MOST_FILES = 400, 15


def sources(package: str) -> list[Path]:
    return [path for path in (ROOT / package).rglob("*.py") if not path.is_symlink()]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_too_long_to_be_read(package: str) -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in sources(package)}
    assert len(lengths) > 2
    assert not {path: length for path, length in lengths.items() if length > MOST_LINES}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_holds_more_than_can_be_told_apart(package: str) -> None:
    folders = {path.parent for path in sources(package)}
    sizes = {folder.relative_to(ROOT): sum(each.is_file() for each in folder.iterdir()) for folder in folders}
    assert not {folder: size for folder, size in sizes.items() if size > MOST_FILES}
