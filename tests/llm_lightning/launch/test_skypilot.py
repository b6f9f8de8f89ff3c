"""`llm-lightning sky`: the YAML against SkyPilot's schema, and what its `run` starts on each machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llm_lightning.__main__ import main
from llm_lightning.launch.skypilot import PORT
from tests.command_line import ROOT
from tests.distributed.test_two_ranks import FIT, column
from tests.llm_lightning.launch.test_kubernetes import free_port

JOB = ("--setup=pip install llm-lightning", "--bucket=s3://me:/runs", "--trainer.default_root_dir=/runs/Tiny_Run")
FULL = (
    *JOB, "--nodes=2", "--gpus-per-node=8", "--gpu=H100", "--cpus=64+", "--memory=512+", "--infra=gcp/us-central1",
    "--spot", "--image=docker:me/llm:1", "--volume=shared:/data", "--env=WANDB_API_KEY", "--name=mine",
    "--max-restarts=5", "--stop-before=300",
)  # fmt: skip

# What is used of the schema of SkyPilot 0.14 (sky/utils/schemas.py), with the types it gives.
TASK = {
    "name": str, "num_nodes": int, "resources": dict, "file_mounts": dict, "volumes": dict, "secrets": dict,
    "setup": str, "run": str,
}  # fmt: skip
RESOURCES = {
    "infra": str, "cpus": str, "memory": str, "image_id": str, "accelerators": str, "use_spot": bool,
    "job_recovery": dict,
}  # fmt: skip
STORAGE = {"source": str, "mode": str}


@pytest.fixture
def written(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)

    def write(*args, command="fit"):
        code = main(["sky", command, "--config", "tiny.yaml", "--dry-run", *args])
        output = capfd.readouterr()
        return output.err if code else yaml.safe_load(output.out)

    return write


def typed(mapping, schema):
    return mapping.keys() <= schema.keys() and all(isinstance(value, schema[key]) for key, value in mapping.items())


@pytest.mark.parametrize("args", [JOB, FULL])
def test_the_yaml_has_what_the_schema_knows(written, args):
    task = written(*args)
    assert typed(task, TASK) and typed(task["resources"], RESOURCES)
    assert all(typed(mount, STORAGE) for mount in task["file_mounts"].values())


@pytest.mark.slow
@pytest.mark.parametrize("args", [JOB, FULL])
def test_skypilot_itself_takes_the_yaml(written, args):
    schemas = pytest.importorskip("sky.utils.schemas")
    from sky.utils.common_utils import validate_schema

    task = written(*args)
    validate_schema(task, schemas.get_task_schema())
    validate_schema(task["resources"], schemas.get_resources_schema())
    for mount in task["file_mounts"].values():
        validate_schema(mount, schemas.get_storage_schema())
    with pytest.raises(ValueError, match="nodes"):
        validate_schema(task | {"nodes": 2}, schemas.get_task_schema())


def test_flags(written):
    task = written(*FULL)
    assert task["name"] == "mine" and task["num_nodes"] == 2
    assert task["resources"] == {
        "infra": "gcp/us-central1", "cpus": "64+", "memory": "512+", "image_id": "docker:me/llm:1",
        "accelerators": "H100:8", "use_spot": True,
        "job_recovery": {"max_restarts_on_errors": 5, "recover_on_exit_codes": [143]},
    }  # fmt: skip
    assert task["file_mounts"] == {"/runs": {"source": "s3://me", "mode": "MOUNT_CACHED"}}
    assert task["volumes"] == {"/data": "shared"} and task["secrets"] == {"WANDB_API_KEY": None}
    assert "PET_NPROC_PER_NODE=8" in task["run"] and "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300" in task["run"]
    assert "--trainer.devices=8" in task["run"] and "--trainer.num_nodes=2" in task["run"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), ["--image", "--setup"]),
        ((*JOB[:1], "--trainer.default_root_dir=/runs/x"), ["/runs/x lies on no --bucket"]),
        ((*JOB, "--nodes=0"), ["--nodes=0 is below 1"]),
        ((*JOB, "--gpus-per-node=8"), ["--gpu H100"]),
        ((*JOB, "--cpus=many"), ["--cpus='many'"]),
        ((*JOB, "--bucket=/runs"), ["--bucket='/runs'", "SOURCE:PATH"]),
        ((*JOB, "--env=HOME=/root"), ["--env takes an environment variable's name"]),
        ((*JOB, "--setup=if"), ["no valid bash", "--setup"]),
        ((*JOB, "--trainer.devices=2"), ["trainer.devices follows"]),
        ((*JOB, "--model.no_such=1"), ["no_such"]),
        ((*JOB, "--api_key=sk-abcdefghijklmnop1234567890"), ["looks like a secret", "--env"]),
    ],
)
def test_what_cannot_work_is_one_message(written, args, words):
    message = written(*args)
    assert isinstance(message, str) and message.count("llm-lightning: error: ") == 1 and "Traceback" not in message
    assert all(word in message for word in words), message


@pytest.mark.slow
def test_two_machines_train_by_what_the_yaml_runs(written, folder, cache, fresh_run):
    """Under the variables that SkyPilot sets; another folder in place of the bucket, and another port."""
    root = folder / "bucket" / "run"
    task = written(
        *FIT[3:], "--data.batch_size=2", "--trainer.strategy=ddp", "--nodes=2", "--setup=true",
        f"--bucket=s3://me:{root.parent}", f"--trainer.default_root_dir={root}",
    )  # fmt: skip
    script = task["run"].replace(str(PORT), str(free_port()))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLM_LIGHTNING", "PET_"))}
    environment = kept | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "LLM_LIGHTNING_CACHE": str(cache), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "SKYPILOT_NUM_NODES": str(task["num_nodes"]), "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1",
        "SKYPILOT_NUM_GPUS_PER_NODE": "0",
    }  # fmt: skip
    machines = [
        subprocess.Popen(
            ["bash", "-c", script], cwd=folder, env=environment | {"SKYPILOT_NODE_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    code, output = fresh_run(*FIT, "--data.batch_size=4", "--trainer.default_root_dir=one")
    assert code == 0, output
    assert column(root, "train/loss") == pytest.approx(column(folder / "one", "train/loss"), rel=1e-5)
