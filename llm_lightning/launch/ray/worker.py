"""What each worker of Ray Train does: it starts its rank under torchrun's variables and follows it to its end."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypedDict

import ray
from ray import train
from ray.train import collective

MISTAKE = 2
"""Exit code of a mistake that another attempt would not mend."""
MISTAKEN = "a mistake that another attempt would not mend"
LOOK_S = 2.0
"""Seconds between two looks at the rank; Ray's controller looks at its workers as often."""


class Work(TypedDict):
    """What is to be run.

    Attributes:
        arguments: Of `llm-lightning`, without what follows from the workers.
        environment: Settings and places that the driver was given by variables (LLM_LIGHTNING...).
        folder: The driver's, in which relative paths begin.
        root: The run folder.
        ranks_per_node: How many workers each node should have.
    """

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    root: str
    ranks_per_node: int


class RankError(RuntimeError):
    """A rank failed; Ray starts all of them again."""


def work(given: Work) -> None:
    """Run one rank.

    Raises:
        RankError: it ended with another exit code than 0.
    """
    context = train.get_context()
    node = context.get_local_world_size()
    if node != given["ranks_per_node"]:
        raise RankError(
            f"Ray put {node} workers onto this node, and each should have {given['ranks_per_node']}: {MISTAKEN} as "
            "long as others use the cluster. Ask for --tasks-per-node or --gpus-per-node as many as nodes have free."
        )
    where = collective.broadcast_from_rank_zero(_meeting_point() if context.get_world_rank() == 0 else None)
    process = subprocess.Popen(
        [sys.executable, "-m", "llm_lightning.launch.ray.rank", str(os.getpid()), *given["arguments"]],
        cwd=given["folder"],
        env=dict(os.environ) | given["environment"] | where | torchrun_variables(context),
    )
    try:
        _follow(process, Path(given["folder"], given["root"]), first=context.get_world_rank() == 0)
    finally:
        process.kill()


def torchrun_variables(context: train.TrainContext) -> dict[str, str]:
    """A worker's place among all, as torchrun tells it to Lightning and torch."""
    return {
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "GROUP_RANK": str(context.get_node_rank()),
        "TORCHELASTIC_RUN_ID": str(context.get_experiment_name()),
    }


def newest_step(root: Path) -> int:
    """The step of the newest checkpoint in a run folder, 0 where there is none."""
    found = (re.fullmatch(r"step=(\d+)\.ckpt", path.name) for path in (root / "checkpoints").glob("step=*.ckpt"))
    return max((int(match[1]) for match in found if match), default=0)


def _meeting_point() -> dict[str, str]:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return {"MASTER_ADDR": ray.util.get_node_ip_address(), "MASTER_PORT": str(listener.getsockname()[1])}


def _follow(process: "subprocess.Popen[bytes]", root: Path, *, first: bool) -> None:
    """Wait for the rank; all workers go through this loop in step, since each report to Ray waits for all of them."""
    reported = newest_step(root) if first else 0
    goes_on = True
    while goes_on:
        code = _wait(process, LOOK_S)
        step, goes_on = collective.broadcast_from_rank_zero((newest_step(root), code is None) if first else None)
        if step > reported:
            _report(step, root, first=first)
            reported = step
    _wait(process, None)


def _wait(process: "subprocess.Popen[bytes]", seconds: float | None) -> int | None:
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    if code == MISTAKE:
        raise RankError(f"The rank ended with exit code {MISTAKE}, {MISTAKEN}.")
    if code:
        raise RankError(f"The rank ended with exit code {code}.")
    return code


def _report(step: int, root: Path, *, first: bool) -> None:
    """Tell Ray of a checkpoint by a folder that names it.

    Handed over itself it would be copied, or be Ray's to delete, and a run whose older checkpoints are gone could not
    begin again.
    """
    if not first:
        train.report({"step": step})
        return
    with tempfile.TemporaryDirectory() as folder:
        named = {"step": step, "checkpoint": str(root / "checkpoints" / f"step={step}.ckpt")}
        Path(folder, "checkpoint.json").write_text(json.dumps(named))
        train.report({"step": step}, checkpoint=train.Checkpoint.from_directory(folder))
