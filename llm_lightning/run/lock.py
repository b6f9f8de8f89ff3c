"""One run at a time in a run folder: a lock that a dead process does not hold."""

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import psutil
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from llm_lightning.errors import UserError

# File systems that have no such locks, or are mounted without them.
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class RunLock:
    """Held by the first rank of a run as long as its process lives, by whatever means it ends.

    On one machine the kernel decides, by a POSIX lock: it ends with its process, `kill -9` included, and forked loader
    workers do not inherit it. Where the lock names another machine, a network file system may know it late, or not at
    all (`nolock`, Lustre without `flock`), so that the holder also writes a beat into the file, and who wants the
    folder watches for it. The file stays in the folder, empty while nobody holds it.

    Nothing in this process may open and close the file, which would end a POSIX lock.

    Args:
        folder: What only one process may write to; made if it is not there.
        name: Of the file in it.
        doing: What the holder does, for the message.
    """

    BEAT_S = 10.0
    WATCH_S = 35.0
    """Three beats, and some time for a network file system to show them."""
    LEASE_S = 120.0
    """NFS 4 gives up the locks of a client that is gone after its lease, 90 seconds by default."""

    def __init__(self, folder: Path, name: str = ".lock", doing: str = "trains") -> None:
        self.path = folder / name
        self.doing = doing
        self._descriptor: int | None = None
        self._token = uuid.uuid4().hex
        self._released = threading.Event()
        self._beats: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock, on the first rank only; waits where another machine held it and may be gone.

        Raises:
            UserError: a process that lives holds it.
        """
        if getattr(rank_zero_only, "rank", 0) != 0:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            self._wait()
        except BaseException:
            os.close(self._descriptor)
            self._descriptor = None
            raise
        self._released.clear()
        self._beat(0)
        self._beats = threading.Thread(target=self._keep_beating, name="run lock", daemon=True)
        self._beats.start()

    def release(self) -> None:
        """Give the folder free."""
        if self._descriptor is None:
            return
        self._released.set()
        if self._beats is not None:
            self._beats.join()
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = None

    def _wait(self) -> None:
        owner, locked = self._owner(), self._lock()
        if owner is None and locked is False:  # it is just being taken, or given free
            time.sleep(0.5)
            owner, locked = self._owner(), self._lock()
        if owner is None or owner["host"] == socket.gethostname():
            if locked or (locked is None and not (owner and _lives(owner))):
                return
            raise self._in_use(owner)
        rank_zero_info(
            f"{self.path.parent} was used by a run on {owner['host']}: looking for {self.WATCH_S:.0f} s whether it "
            "still lives."
        )
        began = time.monotonic()
        while time.monotonic() < began + self.WATCH_S:
            time.sleep(self.WATCH_S / 35)
            if (now := self._owner()) is None:
                break
            if (now["token"], now["beat"]) != (owner["token"], owner["beat"]):
                raise self._in_use(now)
        while self._lock() is False:
            if time.monotonic() > began + self.WATCH_S + self.LEASE_S:
                raise self._in_use(owner)
            time.sleep(1)

    def _lock(self) -> bool | None:
        """Whether the kernel gave us the lock; None where the file system has none."""
        assert self._descriptor is not None
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            if error.errno in UNSUPPORTED:
                return None
            raise
        return True

    def _owner(self) -> dict[str, Any] | None:
        assert self._descriptor is not None
        try:
            owner = json.loads(os.pread(self._descriptor, 4096, 0))
            return {"beat": 0, "token": "", "pid": 0, "started": 0.0, "since": "", "job": None} | owner | {
                "host": str(owner["host"])
            }  # fmt: skip
        except (ValueError, TypeError, KeyError):
            return None

    def _beat(self, count: int) -> None:
        assert self._descriptor is not None
        process = psutil.Process()
        text = json.dumps({
            "host": socket.gethostname(), "pid": process.pid, "started": process.create_time(), "token": self._token,
            "since": f"{datetime.fromtimestamp(process.create_time()):%Y-%m-%d %H:%M}",
            "job": os.environ.get("SLURM_JOB_ID"), "beat": count,
        })  # fmt: skip
        os.pwrite(self._descriptor, text.encode().ljust(1024), 0)

    def _keep_beating(self) -> None:
        count = 0
        while not self._released.wait(self.BEAT_S):
            count += 1
            try:
                self._beat(count)
            except OSError:  # a full disk, or a server that is away: the next one may go well
                continue

    def _in_use(self, owner: dict[str, Any] | None) -> UserError:
        who = "Another process"
        if owner is not None:
            job = f", SLURM job {owner['job']}" if owner["job"] else ""
            who = f"Process {owner['pid']} on {owner['host']} (since {owner['since']}{job})"
        return UserError(
            f"{who} {self.doing} in {self.path.parent}. Wait for it or stop it, or give this run a folder of its own "
            "by --trainer.default_root_dir."
        )


def _lives(owner: dict[str, Any]) -> bool:
    try:
        return abs(psutil.Process(int(owner["pid"])).create_time() - float(owner["started"])) < 1
    except (psutil.Error, ValueError, TypeError):
        return False
