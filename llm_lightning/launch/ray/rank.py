"""A rank in a process of its own, which lives no longer than the one that started it.

    python -m llm_lightning.launch.ray.rank PARENT fit --config ...

A worker of Ray runs its function beside its main thread, where no signal can be listened to, and with threads of its
own, beside which loader workers cannot be forked safely. So the rank is a process, as under torchrun.
"""

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """End this process by SIGKILL as soon as its parent has ended, by whatever means (Linux).

    Args:
        parent: its process id; where it ended before this call, this process ends too.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    die_with(int(sys.argv.pop(1)))
    runpy.run_module("llm_lightning", run_name="__main__", alter_sys=True)
