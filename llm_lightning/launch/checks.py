"""Whether a run's processes were started as its trainer expects; else it hangs, or trains several runs at once."""

import os
import re
import socket
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from llm_lightning.errors import UserError
from llm_lightning.process.redacted_output import report

# Lightning takes a job of such a name for a person's shell.
SHELL_NAMES = ("bash", "interactive")


class LaunchError(UserError):
    """A wrong start, which every rank sees; the first one tells of it."""


class MeetingError(RuntimeError):
    """Ranks are missing, or do not reach each other: no mistake in a setting, and another attempt may go well.

    Args:
        text: what happened.
        told_by_first: whether the first rank says it, and says more.
    """

    def __init__(self, text: str, told_by_first: bool = False) -> None:
        super().__init__(text)
        self.told_by_first = told_by_first


def end_at_once(error: MeetingError, debug: bool) -> NoReturn:
    """Say it, and end this process: with a process group's way down, operations that others never end are waited for.

    Args:
        error: what happened.
        debug: show the traceback, too.
    """
    if debug or not error.told_by_first:
        report(error, debug)
    sys.stdout.flush()
    os._exit(os.EX_TEMPFAIL)


def check_launch(devices: Any, num_nodes: int, environment: Mapping[str, str] = os.environ) -> None:
    """Compare `trainer.devices` and `trainer.num_nodes` with what srun or torchrun started.

    Args:
        devices: as given; lists and `auto` are left to Lightning where nothing is known of them.
        num_nodes: as given.
        environment: of this process.

    Raises:
        LaunchError: with the way out.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        local = int(environment["LOCAL_WORLD_SIZE"])
        _compare(devices, num_nodes, local, int(environment["WORLD_SIZE"]) // local, "torchrun", "--nproc-per-node")
    elif "SLURM_JOB_ID" in environment and environment.get("SLURM_NTASKS", "1") != "1":
        _check_slurm(devices, num_nodes, environment)
    else:
        return
    if "MASTER_ADDR" in environment or "SLURM_NODELIST" in environment:
        _check_master(environment)


def explain(error: Exception) -> UserError | None:
    """What a failure to meet means; None where it is something else."""
    text = str(error)
    port = match[1] if (match := re.search(r"port: (\d+)", text)) else os.environ.get("MASTER_PORT")
    if "EADDRINUSE" in text:
        return LaunchError(
            f"Port {port} of this host is taken by another program, so that the ranks cannot meet there: set "
            "MASTER_PORT to a free one (torchrun: --master-port), the same on all nodes."
        )
    if "client socket" in text and "timed out" in text:
        return UserError(
            f"Rank {os.environ.get('RANK', os.environ.get('SLURM_PROCID', '?'))} could not reach the first rank at "
            f"{os.environ.get('MASTER_ADDR')}:{port}: is MASTER_ADDR right, does the first rank run, does a firewall "
            "stand between?"
        )
    return None


def _check_slurm(devices: Any, num_nodes: int, environment: Mapping[str, str]) -> None:
    tasks = int(environment["SLURM_NTASKS"])
    name = environment.get("SLURM_JOB_NAME")
    in_step = "SLURM_STEP_ID" in environment
    if name in SHELL_NAMES:
        if in_step:
            raise LaunchError(
                f"srun started {tasks} tasks in a job named {name}, which Lightning takes for a shell: each would "
                "train a run of its own in the same folder. Name it: srun --job-name=train ..."
            )
        return  # somebody at work in an allocation, with one process
    if not in_step:
        raise LaunchError(
            f"The job has {tasks} tasks and this is its batch script: start the command by srun, or it waits for "
            "ranks that never come."
        )
    per_node = environment.get("SLURM_NTASKS_PER_NODE")
    if per_node is None:
        raise LaunchError(f"--ntasks={tasks} says nothing of each node: give sbatch --ntasks-per-node instead.")
    _compare(devices, num_nodes, int(per_node), int(environment["SLURM_NNODES"]), "SLURM", "--ntasks-per-node")


def _compare(devices: Any, num_nodes: int, tasks: int, nodes: int, who: str, flag: str) -> None:
    given = str(devices)
    if (given.isdigit() and int(given) != tasks) or (given == "auto" and tasks > 1 and not _has_accelerators()):
        raise LaunchError(
            f"trainer.devices={given}, and {who} started {tasks} processes on each node ({flag}): they must be equal, "
            f"--trainer.devices={tasks}."
        )
    if num_nodes != nodes:
        raise LaunchError(
            f"trainer.num_nodes={num_nodes}, and {who} started processes on {nodes}: they must be equal, "
            f"--trainer.num_nodes={nodes}."
        )


def _has_accelerators() -> bool:
    import torch

    return torch.accelerator.is_available()


def _check_master(environment: Mapping[str, str]) -> None:
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    host = environment.get("MASTER_ADDR")
    host = host or SLURMEnvironment.resolve_root_node_address(environment["SLURM_NODELIST"])
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise LaunchError(
            f"The first rank's host {host!r} has no address here ({error.strerror}): set MASTER_ADDR to a name or an "
            "address of it that all nodes know."
        ) from error
