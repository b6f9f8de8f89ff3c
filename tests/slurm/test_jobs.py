"""Under a real SLURM: chains of stages, sweeps as array jobs, and launches that are wrong.

`pytest tests/slurm -m slow`, see test_faults.py.
"""

import re
import socket
import subprocess
import sys

import pytest

from tests.command_line import ROOT

pytestmark = pytest.mark.slow

TWO_NODES = ("--nodes=2", "--time=30", "--setup", "export MASTER_ADDR=127.0.0.1")
STAGES = ("pretrain", "sft", "reward", "ppo")


def pace(init_args: str) -> str:
    return f"--trainer.callbacks+=[{{class_path: tests.slurm.pace.Pace, init_args: {{{init_args}}}}}]"


def submit_chain(run, *args: str) -> list[str]:
    stages = [str(ROOT / "configs" / "quickstart" / f"{stage}.yaml") for stage in STAGES]
    short = ("--trainer.max_steps=6", "--trainer.val_check_interval=3", "--trainer.limit_val_batches=1")
    done = run.command("slurm", "chain", *stages, *short, *TWO_NODES, *args)
    assert done.returncode == 0, done.stderr
    jobs = re.findall(r"Submitted job (\d+)", done.stdout)
    assert len(jobs) == len(STAGES)
    run.job, run.root = jobs[0], run.folder / "runs" / "quickstart-pretrain"
    return jobs


def test_a_chain_waits_for_each_stage_requeues_included(slurm_run):
    jobs = submit_chain(slurm_run, pace("seconds: [0.3]"))
    slurm_run.reaches(2)
    assert all(slurm_run.cluster.state(job) == "PENDING" for job in jobs[1:])
    slurm_run.cluster.call("scancel", "--signal=USR1", jobs[0])
    finished = ""
    for stage, job in zip(STAGES, jobs, strict=True):
        slurm_run.job, slurm_run.root = job, slurm_run.folder / "runs" / f"quickstart-{stage}"
        assert slurm_run.ends() == "COMPLETED", slurm_run.log()
        log = slurm_run.log()
        assert re.search(r"(?m)^(.{19}) attempt 1 ", log)[1] >= finished, stage
        assert ("attempt 2 " in log) == (stage == "pretrain")
        assert (slurm_run.root / "model" / "best" / "config.json").exists()
        finished = re.search(r"(?m)^(.{19}) finished", log)[1]


def test_a_chain_ends_with_the_stage_that_fails(slurm_run):
    jobs = submit_chain(slurm_run, pace("seconds: [0], crash_at: 1"), "--max-failures=1")
    assert slurm_run.ends() == "FAILED"
    for job in jobs[1:]:
        slurm_run.job = job
        assert slurm_run.ends() == "CANCELLED", job
    assert not (slurm_run.folder / "runs" / "quickstart-sft" / "checkpoints").exists()


def test_each_run_of_a_sweep_is_requeued_by_itself(slurm_run, uninterrupted):
    job = slurm_run.submit("--sweep=model.optimizer.lr=6e-4,3e-3")  # the first is the default
    sweep = slurm_run.root
    slurm_run.root = sweep / "1"
    slurm_run.reaches(7)
    slurm_run.cluster.call("scancel", "--signal=USR1", f"{job}_1")
    for run in ("0", "1"):
        slurm_run.job, slurm_run.root = f"{job}_{run}", sweep / run
        assert slurm_run.ends() == "COMPLETED"
        assert len(slurm_run.losses()) == 24
        assert (slurm_run.losses() == uninterrupted) == (run == "0")
        log = (sweep / "slurm" / f"{job}_{run}.log").read_text()
        assert ("attempt 2 " in log) == (run == "1")


SRUN = ("srun", "--nodes=2", "--ntasks-per-node=1", "--job-name=train")
RIGHT = ("--trainer.devices=1", "--trainer.num_nodes=2")


@pytest.mark.parametrize(
    ("start", "args", "words"),
    [
        (SRUN, ("--trainer.devices=2", "--trainer.num_nodes=2"), ["trainer.devices=2", "1 processes", "devices=1"]),
        (SRUN, ("--trainer.devices=1",), ["trainer.num_nodes=1", "--trainer.num_nodes=2"]),
        (("srun", "--nodes=2", "--ntasks=2", "--job-name=train"), RIGHT, ["--ntasks=2", "--ntasks-per-node"]),
        ((*SRUN[:-1], "--job-name=bash"), RIGHT, ["named bash", "srun --job-name=train"]),
        (SRUN, RIGHT, ["'alpha'", "no address", "MASTER_ADDR"]),
    ],
    ids=["devices", "nodes", "ntasks", "bash", "master"],
)
def test_a_wrong_launch_ends_in_one_message(slurm_run, start, args, words):
    done = launch(slurm_run, start, args)
    check_message(done.stderr, words)
    assert done.returncode == 2, done.stderr


def test_a_port_that_is_taken(slurm_run):
    """As our script starts it; else the second rank would wait for an answer from the other program."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        start = (*SRUN, "--kill-on-bad-exit=1")
        done = launch(slurm_run, start, RIGHT, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
    check_message(done.stderr, [f"Port {port} of this host is taken", "MASTER_PORT"])


def test_a_batch_script_without_srun(slurm_run):
    run, log = slurm_run, slurm_run.folder / "batch.log"
    command = f"{sys.executable} -m llm_lightning fit --config tiny.yaml {' '.join(RIGHT)}"
    job = subprocess.run(
        ["sbatch", "--parsable", *SRUN[1:], f"--output={log}", "--wrap", command],
        cwd=run.folder, env=run.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    run.job = job.stdout.strip()
    assert run.ends() == "FAILED"
    check_message(log.read_text(), ["2 tasks", "batch script", "by srun"])


def launch(run, start, args, environment=None):
    return subprocess.run(
        [*start, sys.executable, "-m", "llm_lightning", "fit", "--config", "tiny.yaml", *args],
        cwd=run.folder, env=run.environment | (environment or {}), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def check_message(output: str, words: list[str]) -> None:
    assert output.count("llm-lightning: error: ") == 1 and "Traceback" not in output, output
    assert all(word in output for word in words), output
