"""What a disk cut or changed is seen, and the checkpoint before it is taken."""

import os
import random
import shutil
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp

from llm_lightning.checkpoints.checkpoint_io import METADATA_FILE, AtomicCheckpointIO
from llm_lightning.checkpoints.checksums import check_file
from llm_lightning.checkpoints.damage import check_checkpoint, last_good_checkpoint
from llm_lightning.checkpoints.sharded_reader import METADATA_CHECKSUM, PartsReader, load_parts
from llm_lightning.errors import UserError
from llm_lightning_safety.seals import checksum


def save(path, value=0.0):
    state = {"state_dict": {"w": torch.full((5000,), value)}, "loops": {"a": 1}, "text": "x" * 50}
    AtomicCheckpointIO().save_checkpoint(state, path)
    return path


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.fixture
def two(tmp_path):
    return [save(tmp_path / f"step={step}.ckpt", step) for step in (3, 9)]


def test_what_is_whole_passes_and_is_read_once(two):
    for path in two:
        check_file(path)
    assert last_good_checkpoint(two[0].parent) == two[1]
    assert AtomicCheckpointIO().load_checkpoint(two[1])["state_dict"]["w"][0] == 9


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no checkpoint at all"),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: flip(path, path.stat().st_size // 2),  # in the weights
        lambda path: flip(
            path, path.read_bytes().index(b"x" * 50) + 7
        ),  # in the pickle, where nothing else would see it
    ],
    ids=["cut", "empty", "other", "last byte", "weights", "text"],
)
def test_the_one_before_is_taken_and_that_is_said(two, damage):
    damage(two[1])
    with pytest.raises(UserError, match=r"cannot be read as a checkpoint: .*damaged"):
        AtomicCheckpointIO().load_checkpoint(two[1])
    with pytest.warns(UserWarning, match=r"step=9\.ckpt is damaged.*Taken instead .*step=3\.ckpt"):
        assert last_good_checkpoint(two[0].parent) == two[0]
    assert two[1].exists()
    with pytest.warns(UserWarning, match="damaged"):
        assert last_good_checkpoint(two[0].parent, set_aside=True) == two[0]
    assert [path.name for path in sorted(two[0].parent.iterdir())] == ["step=3.ckpt", "step=9.ckpt.damaged"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert last_good_checkpoint(two[0].parent) == two[0]


def test_where_none_is_whole_nothing_is_begun_anew_in_silence(two):
    for path in two:
        cut(path)
    with pytest.raises(UserError, match=r"step=9.*step=3.*start over with --resume false"):
        last_good_checkpoint(two[0].parent, set_aside=True)
    assert all(path.exists() for path in two)
    assert last_good_checkpoint(two[0].parent / "missing") is None


def test_a_bit_anywhere_in_what_counts_is_seen(two):
    """torch pads between the parts; all else matters."""
    whole = two[1].read_bytes()
    wanted = AtomicCheckpointIO().load_checkpoint(two[1])
    rng = random.Random(0)
    seen = 0
    for place in rng.sample(range(len(whole)), 60):
        two[1].write_bytes(whole)
        flip(two[1], place)
        try:
            got = AtomicCheckpointIO().load_checkpoint(two[1])
        except UserError:
            seen += 1
        else:
            assert got["text"] == wanted["text"] and torch.equal(got["state_dict"]["w"], wanted["state_dict"]["w"])
    assert seen > 45


@pytest.fixture
def parts(tmp_path):
    for step in (3, 9):
        path = tmp_path / f"step={step}.ckpt"
        dcp.save({"state_dict": {"w": torch.full((500,), float(step))}}, checkpoint_id=path)
        beside = {METADATA_CHECKSUM: checksum((path / ".metadata").read_bytes()), "loops": {"a": 1}}
        AtomicCheckpointIO().save_checkpoint(beside, path / METADATA_FILE)
    return tmp_path


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", METADATA_FILE])
@pytest.mark.parametrize("how", ["cut", "missing", "empty"])
def test_parts(parts, name, how):
    check_checkpoint(parts / "step=9.ckpt")
    file = parts / "step=9.ckpt" / name
    if how == "empty":
        file.write_bytes(b"")
    else:
        cut(file) if how == "cut" else file.unlink()
    if (how, name) == ("missing", ".metadata"):  # which is written last: it was never whole
        assert last_good_checkpoint(parts, set_aside=True) == parts / "step=3.ckpt"
        return
    with pytest.warns(UserWarning, match="step=9"):
        assert last_good_checkpoint(parts, set_aside=True) == parts / "step=3.ckpt"
    assert (parts / "step=9.ckpt.damaged").is_dir()


def test_a_bit_in_a_part_costs_the_checkpoint_alone(parts):
    """Torch pads between the tensors; all else matters."""
    file = parts / "step=9.ckpt" / "__0_0.distcp"
    flip(file, file.read_bytes().index(torch.full((1,), 9.0).numpy().tobytes() * 8) + 41)
    with pytest.warns(UserWarning, match=r"step=9\.ckpt is damaged: its __0_0\.distcp .*Taken instead .*step=3\.ckpt"):
        assert last_good_checkpoint(parts, set_aside=True) == parts / "step=3.ckpt"
    assert (parts / "step=9.ckpt.damaged").is_dir()


def test_any_bit_of_the_list_of_parts_is_seen(parts):
    file = parts / "step=9.ckpt" / ".metadata"
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        flip(file, place)
        with pytest.raises(UserError, match=r"step=9\.ckpt is damaged: .*\.metadata"):
            check_checkpoint(parts / "step=9.ckpt")
        file.write_bytes(whole)
    check_checkpoint(parts / "step=9.ckpt")


def test_each_rank_looks_at_a_share_of_the_parts(parts):
    path = parts / "step=9.ckpt"
    cut(path / "__0_0.distcp")
    check_checkpoint(path, rank=1, num_ranks=2)
    with pytest.raises(UserError, match="damaged"):
        check_checkpoint(path, rank=0, num_ranks=2)


def test_a_bit_in_a_part_is_seen_where_it_is_read(parts):
    file = parts / "step=9.ckpt" / "__0_0.distcp"
    flip(file, file.read_bytes().index(torch.full((1,), 9.0).numpy().tobytes() * 8) + 41)
    state = {"state_dict": {"w": torch.zeros(500)}}
    with pytest.raises(UserError, match=r"cannot be read: its __0_0\.distcp is damaged.*--ckpt_path"):
        load_parts(state, PartsReader(parts / "step=9.ckpt"))
    load_parts(state, PartsReader(parts / "step=3.ckpt"))
    assert (state["state_dict"]["w"] == 3).all()


def test_a_part_is_looked_at_once_until_it_is_written_anew(parts):
    path = parts / "step=9.ckpt"
    check_checkpoint(path)
    file, state = path / "__0_0.distcp", {"state_dict": {"w": torch.zeros(500)}}
    written = file.stat().st_mtime_ns
    flip(file, file.read_bytes().index(torch.full((1,), 9.0).numpy().tobytes() * 8) + 41)
    os.utime(file, ns=(written, written))
    load_parts(state, PartsReader(path))
    os.utime(file, ns=(written, written + 1))
    with pytest.raises(UserError, match="is damaged"):
        load_parts(state, PartsReader(path))


def test_a_folder_that_went_away_is_no_damage(two):
    shutil.rmtree(two[0].parent)
    assert last_good_checkpoint(two[0].parent) is None
