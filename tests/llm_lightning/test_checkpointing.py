"""Checkpoints survive kills and full disks, and never run code."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from llm_lightning.checkpoints.checkpoint_io import AtomicCheckpointIO, newest_checkpoint
from llm_lightning.errors import UserError


def test_round_trip_and_leftovers(tmp_path):
    path = tmp_path / "new" / "step=1.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.arange(3)}, path)
    assert AtomicCheckpointIO().load_checkpoint(path)["x"].tolist() == [0, 1, 2]
    assert [p.name for p in path.parent.iterdir()] == ["step=1.ckpt"]


def test_a_kill_during_the_write_leaves_the_last_good_one(tmp_path):
    path = tmp_path / "step=1.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(1)}, path)
    code = (
        "import torch, sys; from llm_lightning.checkpoints.checkpoint_io import AtomicCheckpointIO\n"
        "while True:\n"
        "    AtomicCheckpointIO().save_checkpoint({'x': torch.ones(20_000_000)}, sys.argv[1])\n"
        "    print(1, flush=True)"
    )
    for delay in (0.0, 0.02, 0.05):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert AtomicCheckpointIO().load_checkpoint(path)["x"][0] == 1
    assert newest_checkpoint(tmp_path) == path


def test_a_full_disk_is_said_and_the_last_good_one_stays(tmp_path, mount_small_disk):
    path = mount_small_disk(tmp_path / "small", "400k") / "step=1.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="disk is full"):
        AtomicCheckpointIO().save_checkpoint({"x": torch.ones(1_000_000)}, path)
    assert AtomicCheckpointIO().load_checkpoint(path)["x"] == 0
    assert [p.name for p in path.parent.iterdir()] == ["step=1.ckpt"]


def test_a_planted_link_is_not_written_through(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "checkpoints" / "step=1.ckpt"
    victim.write_text("mine")
    path.parent.mkdir()
    for link in (path, path.with_name(f".step=1.ckpt.tmp-{os.getpid()}")):
        link.symlink_to(victim)
    AtomicCheckpointIO().save_checkpoint({"x": torch.arange(3)}, path)
    assert victim.read_text() == "mine" and not path.is_symlink()
    assert AtomicCheckpointIO().load_checkpoint(path)["x"].tolist() == [0, 1, 2]


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    torch.save({"x": Evil()}, tmp_path / "step=1.ckpt")
    with pytest.raises(UserError, match="cannot be read"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "step=1.ckpt", weights_only=False)
    assert not (tmp_path / "evil").exists()


def test_the_newest_is_the_one_with_the_most_steps(tmp_path):
    for name in ("step=9.ckpt", "step=10.ckpt", ".step=99.ckpt.tmp-1", "other.ckpt"):
        (tmp_path / name).touch()
    (tmp_path / "step=50.ckpt").mkdir()  # sharded, unfinished
    assert newest_checkpoint(tmp_path).name == "step=10.ckpt"
    (tmp_path / "step=50.ckpt" / ".metadata").touch()
    assert newest_checkpoint(tmp_path).name == "step=50.ckpt"
    assert newest_checkpoint(tmp_path / "missing") is None
