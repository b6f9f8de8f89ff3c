"""How OpenMP's threads wait for each other: spinning on a quiet machine, asleep on a busy one."""

import os
import sys
import time
from collections.abc import MutableMapping
from pathlib import Path

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
STAT = Path("/proc/stat")
WATCH_SECONDS = 0.1

# Processors' worth of other work at which threads that spin begin to take turns with it. A shell, a browser tab or a
# logger stay below; one process that computes is 1.
BUSY = 0.5


def choose_waiting_policy(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that wait sleep where others need the processors; to be called before torch is imported.

    By default they spin for milliseconds, which is fastest where each has a processor of its own: sleeping costs an
    eighth of the speed there. Where they have not, each spins away the time that the thread it waits for would need,
    and a run falls to a fifth of what it does asleep. libgomp reads the setting once, as it is loaded: what is seen
    now decides. The user's own OMP_WAIT_POLICY, GOMP_SPINCOUNT or KMP_BLOCKTIME is left as it is, as are other systems
    than Linux, whose load cannot be seen this way.

    Args:
        environment: where the setting is read and written.
    """
    if any(name in environment for name in SETTINGS) or sys.platform != "linux":
        return
    processors = len(os.sched_getaffinity(0))
    threads = environment.get("OMP_NUM_THREADS", "").partition(",")[0]
    wanted = int(threads) if threads.isdigit() else processors
    if wanted > 1 and wanted > processors - processors_in_use() + BUSY:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


def processors_in_use(seconds: float = WATCH_SECONDS) -> float:
    """How many processors all other processes kept busy over the next moment.

    Args:
        seconds: how long to look. The kernel counts hundredths of a second for each processor.
    """
    before, own = _busy_seconds(), time.process_time()
    start = time.perf_counter()
    time.sleep(seconds)
    used = _busy_seconds() - before - (time.process_time() - own)
    return max(0.0, used / (time.perf_counter() - start))


def _busy_seconds() -> float:
    """What all processors together have worked: user, nice, system, irq and softirq of the first line (`man proc`)."""
    fields = STAT.read_text().partition("\n")[0].split()[1:]
    ticks = sum(int(fields[i]) for i in (0, 1, 2, 5, 6))
    return ticks / os.sysconf("SC_CLK_TCK")
