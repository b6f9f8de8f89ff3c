"""A run that was started in the wrong way says so at once."""

import os
import socket
import subprocess
import sys

import pytest

from llm_lightning.__main__ import main
from tests.command_line import ROOT

STEP = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2",
    "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
    "SLURM_NODELIST": "localhost",
}  # fmt: skip
TWO = ["--trainer.devices=2", "--trainer.num_nodes=2"]


@pytest.mark.parametrize(
    ("changes", "args", "words"),
    [
        (
            {},
            ["--trainer.devices=4", "--trainer.num_nodes=2"],
            ["trainer.devices=4", "2 processes", "--trainer.devices=2"],
        ),
        ({}, ["--trainer.devices=2"], ["trainer.num_nodes=1", "--trainer.num_nodes=2"]),
        ({"SLURM_STEP_ID": None}, TWO, ["4 tasks", "batch script", "srun"]),
        ({"SLURM_JOB_NAME": "bash"}, TWO, ["named bash", "srun --job-name=train"]),
        ({"SLURM_NTASKS_PER_NODE": None}, TWO, ["--ntasks=4", "--ntasks-per-node"]),
        ({"SLURM_NODELIST": "no-such-host[1-2]"}, TWO, ["'no-such-host1'", "MASTER_ADDR"]),
        ({"MASTER_ADDR": "no-such-host"}, TWO, ["'no-such-host'", "MASTER_ADDR"]),
    ],
)
def test_under_slurm(folder, cache, monkeypatch, capfd, changes, args, words):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in (STEP | changes).items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    assert main(["fit", "--config", "tiny.yaml", *args]) == 2
    message = capfd.readouterr().err
    assert message.count("llm-lightning: error: ") == 1 and "Traceback" not in message
    assert all(word in message for word in words), message

    monkeypatch.setenv("SLURM_PROCID", "3")
    assert main(["fit", "--config", "tiny.yaml", *args]) == 2
    assert "error" not in capfd.readouterr().err, "the first rank has told it"


def start(folder, cache, *args, env):
    command = [sys.executable, "-m", "llm_lightning", "fit", "--config", "tiny.yaml", *args]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LLM_LIGHTNING_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment | env, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_port_that_is_taken(folder, cache):
    """The first of two ranks, as srun starts it."""
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        env = {
            "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_NNODES": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
            "SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        done = start(folder, cache, "--trainer.devices=2", env=env)
    assert done.returncode == 2, done.stderr
    assert f"Port {port} of this host is taken" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_torchrun_with_another_number_of_processes(folder, cache):
    env = {
        "TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999",
    }  # fmt: skip
    done = start(folder, cache, env=env)
    assert done.returncode == 2 and "torchrun started 2 processes" in done.stderr and "Traceback" not in done.stderr
