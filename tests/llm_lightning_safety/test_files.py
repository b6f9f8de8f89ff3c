"""No link in a folder that a stranger may have made is followed, in writing or in reading."""

import math
import os

import pytest

from llm_lightning_safety.files import (
    atomic_file,
    is_plain_name,
    links_out_of,
    make_folder,
    open_unlinked,
    parse_json,
    read_text,
    remove,
    write_text,
)


@pytest.fixture
def victim(tmp_path):
    (tmp_path / "outside").mkdir()
    path = tmp_path / "outside" / "victim"
    path.write_text("mine")
    return path


@pytest.fixture
def root(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_writing_replaces_a_link(root, victim):
    (root / "metrics.csv").symlink_to(victim)
    write_text(root / "metrics.csv", "step\n")
    assert victim.read_text() == "mine" and (root / "metrics.csv").read_text() == "step\n"
    assert not (root / "metrics.csv").is_symlink()
    assert [path.name for path in root.iterdir()] == ["metrics.csv"]


def test_a_block_that_fails_leaves_what_was_there(root):
    write_text(root / "a", "before")
    with pytest.raises(RuntimeError), atomic_file(root / "a") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (root / "a").read_text() == "before" and len(list(root.iterdir())) == 1


@pytest.mark.parametrize("mode", ["rb", "ab", "r+b", "wb"])
def test_opening_in_place_refuses_links_and_pipes(root, victim, mode):
    (root / "link").symlink_to(victim)
    with pytest.raises(OSError, match="is a link"):
        open_unlinked(root / "link", mode)
    os.mkfifo(root / "pipe")
    with pytest.raises(OSError):
        open_unlinked(root / "pipe", mode)
    assert victim.read_text() == "mine"


def test_a_link_to_nothing_is_not_created(root, victim):
    (root / "link").symlink_to(victim.with_name("new"))
    with pytest.raises(OSError, match="is a link"):
        open_unlinked(root / "link", "ab")
    write_text(root / "link", "text")
    assert not victim.with_name("new").exists()


def test_reading_is_bounded(root, victim):
    write_text(root / "a", "x" * 100)
    assert read_text(root / "a") == "x" * 100
    with pytest.raises(OSError, match="more than 99 bytes"):
        read_text(root / "a", most=99)


def test_folders(root, victim):
    (root / "samples").symlink_to(victim.parent)
    with pytest.raises(OSError, match="is a link"):
        make_folder(root / "samples")
    make_folder(root / "a" / "b")
    assert (root / "a" / "b").is_dir()


def test_removing_leaves_what_a_link_points_to(root, victim):
    (root / "link").symlink_to(victim.parent)
    remove(root / "link")
    remove(root / "nothing")
    make_folder(root / "folder" / "in")
    remove(root / "folder")
    assert victim.exists() and not list(root.iterdir())


def test_links_out_of_a_folder_are_found(root, victim, tmp_path):
    make_folder(root / "wandb" / "run")
    write_text(root / "wandb" / "run" / "log", "")
    (root / "wandb" / "latest").symlink_to("run")
    (root / "wandb" / "debug.log").symlink_to("run/log")
    assert not list(links_out_of(root))
    (tmp_path / "by-link").symlink_to(root)
    assert not list(links_out_of(tmp_path / "by-link"))
    for place, target in (
        ("model", victim.parent), ("wandb/run/id", victim), ("up", "../outside"), ("circle", "circle"),
        ("wandb/missing", "/no/such/file"),
    ):  # fmt: skip
        (root / place).symlink_to(target)
        assert list(links_out_of(root)) == [(root / place).parent.resolve() / (root / place).name], place
        (root / place).unlink()


@pytest.mark.parametrize("text", ["a1b2c3d4", "trial-1", "run_2.1", "A" * 128])
def test_plain_names(text):
    assert is_plain_name(text)


@pytest.mark.parametrize("text", ["", "../x", "a b", "a/b", ".hidden", "root:x:0:0", "a\nb", "A" * 129, "é"])
def test_other_names(text):
    assert not is_plain_name(text)


def test_json_holds_no_integer_that_stops_a_calculation():
    assert parse_json('{"a": [1, -2, 1e400]}') == {"a": [1, -2, math.inf]}
    for text in ("1" * 301, "[" * 200_000, "{", '{"a": -' + "9" * 5_000 + "}"):
        with pytest.raises(ValueError):
            parse_json(text)
