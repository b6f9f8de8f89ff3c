import errno
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import threading
import time

import psutil
import pytest

from llm_lightning.errors import UserError
from llm_lightning.run.lock import RunLock

fork = multiprocessing.get_context("fork")


def hold(folder, ready):
    with RunLock(folder):
        ready.set()
        worker = fork.Process(target=time.sleep, args=(60,), daemon=True)  # outlives us, as a loader's worker may
        worker.start()
        (folder / "worker").write_text(str(worker.pid))
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    ready = fork.Event()
    process = fork.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    while not (tmp_path / "worker").exists():
        time.sleep(0.01)
    yield process
    for pid in (process.pid, int((tmp_path / "worker").read_text() or 0)):
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)
    process.join()


def test_a_second_run_is_refused_and_a_dead_one_holds_nothing(tmp_path, holder):
    with pytest.raises(UserError, match=rf"Process {holder.pid} on {socket.gethostname()} .*trains.*default_root_dir"):
        RunLock(tmp_path).acquire()
    with RunLock(tmp_path, ".predict.lock", "writes predictions"):
        pass
    os.kill(holder.pid, signal.SIGSTOP)
    with pytest.raises(UserError, match="trains in"):
        RunLock(tmp_path).acquire()
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert psutil.pid_exists(int((tmp_path / "worker").read_text()))
    with RunLock(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == ""


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_without_locks_in_the_file_system_the_holder_is_looked_for(tmp_path, holder, monkeypatch, number):
    def lockf(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.raises(UserError, match=f"Process {holder.pid}"):
        RunLock(tmp_path).acquire()
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with RunLock(tmp_path):
        owner = json.loads((tmp_path / ".lock").read_text())
        assert owner["pid"] == os.getpid()


class Hasty(RunLock):
    BEAT_S, WATCH_S, LEASE_S = 0.05, 0.7, 0.5


def of_another_machine(path, beat):
    owner = {"host": "node7", "pid": 1, "started": 0.0, "token": "t", "since": "noon", "job": "41", "beat": beat}
    path.write_text(json.dumps(owner).ljust(1024))


def test_a_run_on_another_machine_holds_the_folder_while_it_beats(tmp_path):
    path, stop = tmp_path / ".lock", threading.Event()
    of_another_machine(path, 0)

    def beat():
        count = 0
        while not stop.wait(0.05):
            count += 1
            of_another_machine(path, count)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match=r"Process 1 on node7 .since noon, SLURM job 41. trains"):
            Hasty(tmp_path).acquire()
    finally:
        stop.set()
        thread.join()
    began = time.monotonic()
    with Hasty(tmp_path):  # its node is gone: no beat, and nothing was given free
        assert time.monotonic() - began >= 0.7
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_the_holder_beats(tmp_path):
    with Hasty(tmp_path):
        first = json.loads((tmp_path / ".lock").read_text())["beat"]
        time.sleep(0.4)
        assert json.loads((tmp_path / ".lock").read_text())["beat"] > first


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": 3}', "\0" * 100])
def test_a_file_that_names_nobody_is_free(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    with RunLock(tmp_path):
        pass


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "other.txt").write_text("kept")
    (tmp_path / ".lock").symlink_to(tmp_path / "other.txt")
    with pytest.raises(OSError):
        RunLock(tmp_path).acquire()
    assert (tmp_path / "other.txt").read_text() == "kept"
