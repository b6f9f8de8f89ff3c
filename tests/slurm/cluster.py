"""A real SLURM cluster of two nodes on this machine, from Debian's packages, for the tests of this folder.

Each node is a slurmd of its own with its own name, port and loopback address; they share the kernel, the files and the
cores. Allocation, launch, signals, requeue and the loss of a node are SLURM's own. Everything lies in one folder.

    python tests/slurm/cluster.py install     # apt-get install, as root

The tests start and stop it; they skip, and say why, where it cannot start.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
NODES = ("alpha", "beta")
DAEMONS = (*NODES, "slurmctld", "munged")  # in the order in which they end
FIRST_PORT = 17100
REQUEUE_WAIT = 5  # seconds before a requeued job may start, the least that SLURM takes; its own default is 120

CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
# The script makes MASTER_PORT of it, and clusters that run side by side share this machine's ports.
FirstJobId={first_job}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={wait}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PropagateResourceLimits=NONE
# The nodes claim more cores than there are.
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
ReturnToService=2
SlurmdTimeout=10
KillWait=20
InactiveLimit=0
MailProg=/bin/true
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


class CannotStartError(Exception):
    """The cluster cannot be had here; the message says why, and the way out."""


class Cluster:
    """Starts with `start()`; `environment` tells SLURM's commands where it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Write the configuration, start the daemons and wait until both nodes are idle.

        Raises:
            CannotStartError: no root, no packages, or a daemon that does not come up.
        """
        if os.geteuid() != 0:
            raise CannotStartError("a SLURM cluster needs root")
        missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]
        if missing:
            raise CannotStartError(f"{', '.join(missing)} not found: python tests/slurm/cluster.py install")
        (self.folder / "state").mkdir(parents=True)
        port = _free_ports(1 + len(NODES))
        host = socket.gethostname().split(".")[0]
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.1.{11 + i} Port={port + 1 + i} CPUs=4 State=UNKNOWN"
            for i, name in enumerate(NODES)
        ]
        settings = {"host": host, "port": port, "first_job": 1 + 100 * (port - FIRST_PORT)}
        settings |= {"folder": self.folder, "wait": REQUEUE_WAIT, "nodes": "\n".join(nodes)}
        text = CONFIG.format(**settings)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        try:
            self._start_munged()
            self.call("slurmctld")
            for name in NODES:
                self.start_node(name)
        except subprocess.CalledProcessError as error:
            raise CannotStartError(f"{error.cmd[0]} did not start: {error.stderr.strip()[-300:]}") from error
        if not self.wait(lambda: self.idle_nodes() == len(NODES), 30):
            log = (self.folder / "slurmctld.log").read_text()[-500:]
            self.stop()
            raise CannotStartError(f"the nodes did not come up: {log}")

    def _start_munged(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        files = {name: f"{self.folder}/munge.{name.removesuffix('-file')}" for name in ("key-file", "seed-file")}
        files |= {"pid-file": f"{self.folder}/munged.pid", "log-file": f"{self.folder}/munged.log"}
        files |= {"socket": f"{self.folder}/munge.socket"}
        # --force: the folder above is open to others, as /tmp is.
        self.call("munged", "--force", *(f"--{name}={path}" for name, path in files.items()))

    def stop(self) -> None:
        """Cancel all jobs and end the daemons."""
        if self.pid("slurmctld"):
            subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True)
            self.wait(lambda: not self.call("squeue", "-h"), 40)
        for name in DAEMONS:
            if pid := self.pid(name):
                os.kill(pid, signal.SIGTERM)
        self.wait(lambda: not any(self.pid(name) for name in DAEMONS), 10)

    def start_node(self, name: str) -> None:
        """Bring a node (back) up."""
        (self.folder / f"spool-{name}").mkdir(exist_ok=True)
        self.call("slurmd", "-N", name)

    def lose_node(self, name: str) -> None:
        """A power cut: slurmd and all that runs under it are gone at once."""
        here = {"SLURM_CONF": self.environment["SLURM_CONF"], "SLURMD_NODENAME": name}
        inside = [pid for pid, _ in _processes() if here.items() <= _environment(pid).items()]
        for pid in {*inside, *(_parent(pid) for pid in inside if _is_task(pid)), self.pid(name)}:
            _kill(pid)

    def tasks(self, job: int | str) -> dict[int, int]:
        """Process ids of the running ranks of a job, by rank."""
        found = {}
        for pid, line in _processes():
            if "llm_lightning" not in line:
                continue
            environment = _environment(pid)
            if environment.get("SLURM_JOB_ID") == str(job) and "SLURM_STEP_ID" in environment and _is_task(pid):
                found[int(environment["SLURM_PROCID"])] = pid
        return found

    def state(self, job: int | str) -> str:
        """SLURM's word for a job's state, `PENDING`, `RUNNING`, `COMPLETED`, `FAILED`, ..."""
        return self.detail(job, "JobState")

    def detail(self, job: int | str, name: str) -> str:
        """One field of `scontrol show job`, such as `Restarts`."""
        shown = self.call("scontrol", "show", "job", "-o", str(job)).split()
        return dict(part.split("=", 1) for part in shown if "=" in part)[name]

    def idle_nodes(self) -> int:
        """How many nodes answer and are free."""
        return self.call("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split().count("idle")

    def call(self, *command: str) -> str:
        """Run a command of SLURM; its output."""
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def pid(self, name: str) -> int | None:
        """Of a node's slurmd, or of slurmctld; None where it does not run."""
        try:
            pid = int((self.folder / f"{name}.pid").read_text())
            return pid if ("munge" if name == "munged" else "slurm") in Path(f"/proc/{pid}/comm").read_text() else None
        except (OSError, ValueError):
            return None

    @staticmethod
    def wait(condition, seconds: float) -> bool:
        """Wait until `condition()`; False where it did not come true in time."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True


def _free_ports(number: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(FIRST_PORT, FIRST_PORT + 200, 10):
        try:
            for port in range(first, first + number):
                with socket.socket() as listener:
                    listener.bind(("", port))
            return first
        except OSError:
            continue
    raise CannotStartError("no free ports")


def _processes() -> list[tuple[int, str]]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append((int(path.parent.name), path.read_bytes().replace(b"\0", b" ").decode(errors="replace")))
        except OSError:
            continue
    return found


def _environment(pid: int) -> dict[str, str]:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def _is_task(pid: int) -> bool:
    """Whether SLURM itself started it (a rank, but not one of its loader workers)."""
    try:
        return "slurmstepd" in Path(f"/proc/{_parent(pid)}/comm").read_text()
    except OSError:
        return False


def _kill(pid: int | None) -> None:
    if pid:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return


if __name__ == "__main__":
    if sys.argv[1:] != ["install"]:
        sys.exit(__doc__)
    subprocess.run(["apt-get", "update", "-q"], check=True)
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES]
    # RUNLEVEL=1 keeps the packages from starting services of their own where an init system runs.
    subprocess.run(install, check=True, env=os.environ | {"RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"})
