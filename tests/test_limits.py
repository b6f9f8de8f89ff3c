"""The limits that CONTRIBUTING.md sets to files and folders."""

import re
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


@pytest.mark.parametrize("part", [*PACKAGES, "docs", "configs"])
def test_no_folder_holds_more_than_can_be_told_apart(part: str) -> None:
    folders = {path.parent for path in (ROOT / part).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    sizes = {folder.relative_to(ROOT): sum(each.is_file() for each in folder.iterdir()) for folder in folders}
    assert folders and not {folder: size for folder, size in sizes.items() if size > MOST_FILES}


PAGES = [path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if path.name != "CHANGELOG.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    inside = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert not [target for target in inside if not (page.parent / target).exists()]
