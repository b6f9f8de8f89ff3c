"""`llm-lightning k8s`: manifests against the published models of Kubernetes and JobSet, and what a pod runs."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml
from kubeflow_trainer_api.models import IoK8sApiCoreV1ConfigMap, JobsetV1alpha2JobSet

from llm_lightning.__main__ import main
from llm_lightning.launch.jobset import KILLED_BEHIND, name_of
from tests.command_line import ROOT
from tests.distributed.test_two_ranks import FIT, column

POD = ("--image=me/llm:1", "--volume=runs:/runs", "--trainer.default_root_dir=/runs/Tiny_Run")


@pytest.fixture
def manifest(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)

    def written(*args, command="fit"):
        code = main(["k8s", command, "--config", "tiny.yaml", "--dry-run", *args])
        output = capfd.readouterr()
        return output.err if code else list(yaml.safe_load_all(output.out))

    return written


def container(jobset):
    return pod(jobset)["containers"][0]


def pod(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_manifests_are_what_the_published_models_know(manifest):
    """A field that a model does not know would be lost on the way through it."""
    files, jobset = manifest(
        *POD, "--nodes=2", "--gpus-per-node=8", "--cpus=64", "--memory=512Gi", "--env-from=wandb-key", "--queue=lab",
        "--namespace=research", "--node-selector=gpu=h100", "--name=mine", "--stop-before=300", "--max-restarts=5",
    )  # fmt: skip
    assert JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset
    assert IoK8sApiCoreV1ConfigMap.from_dict(files).to_dict() == files
    assert jobset["metadata"] == {
        "name": "mine", "namespace": "research", "labels": {"kueue.x-k8s.io/queue-name": "lab"},
    }  # fmt: skip
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 2 and jobset["spec"]["failurePolicy"]["maxRestarts"] == 5
    assert pod(jobset)["terminationGracePeriodSeconds"] == 300 + KILLED_BEHIND
    assert container(jobset)["resources"] == {
        "requests": {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": "8"}, "limits": {"nvidia.com/gpu": "8"},
    }  # fmt: skip
    environment = {each["name"]: each.get("value") for each in container(jobset)["env"]}
    assert environment["PET_NNODES"] == "2" and environment["PET_NPROC_PER_NODE"] == "8"
    assert environment["PET_MASTER_ADDR"] == "mine-node-0-0.mine"  # jobset-job-index-pod.subdomain
    assert environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "300"


def test_a_mistake_ends_it_and_what_was_preempted_begins_again(manifest):
    """The rules of Job and JobSet, on the messages that Kubernetes writes for the first ones."""
    _, jobset = manifest(*POD)
    rules = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [2] and rules[0]["onExitCodes"]["containerName"] == "node"
    assert rules[1]["onPodConditions"][0]["type"] == "DisruptionTarget"
    messages = {
        "FailJobSet": "Container node for pod ns/run-node-0-1 failed with exit code 2 matching FailJob rule at index 0",
        "RestartJobSetAndIgnoreMaxRestarts": (
            "Pod ns/run-node-0-1 has condition DisruptionTarget matching FailJob rule at index 1"
        ),
    }
    for action, message in messages.items():
        matching = [
            rule["action"]
            for rule in jobset["spec"]["failurePolicy"]["rules"]
            if any(re.search(pattern, message) for pattern in rule["onJobFailureMessagePatterns"])
        ]
        assert matching == [action]


def test_settings_go_along_and_flags_stay_as_they_were(manifest, folder):
    files, jobset = manifest(*POD, "--tasks-per-node=4", "--model.schedule.warmup", "3", "--data.path=$(HOME)/texts")
    (name,) = files["data"]
    assert files["data"][name] == (folder / "tiny.yaml").read_text()
    assert container(jobset)["args"] == [
        "fit", f"--config=/etc/llm-lightning/{name}", "--model.schedule.warmup=3", "--data.path=$$(HOME)/texts",
        "--trainer.accelerator=cpu", "--trainer.devices=4", "--trainer.num_nodes=1",
        "--trainer.default_root_dir=/runs/Tiny_Run",
    ]  # fmt: skip
    assert jobset["metadata"]["name"] == files["metadata"]["name"] == "tiny-run"
    mounted = {mount["mountPath"] for mount in container(jobset)["volumeMounts"]}
    assert mounted == {"/runs", "/dev/shm", "/etc/llm-lightning"}
    assert len(pod(jobset)["volumes"]) == 3


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), ["--image is missing"]),
        (("--image=a", "--trainer.default_root_dir=/runs/x"), ["/runs/x lies on no --volume"]),
        ((*POD, "--nodes=0"), ["--nodes=0 is below 1"]),
        ((*POD, "--gpus-per-node=8", "--tasks-per-node=8"), ["--tasks-per-node is for CPUs"]),
        ((*POD, "--memory=64GB"), ["--memory='64GB'", "64Gi"]),
        ((*POD, "--volume=runs"), ["--volume='runs'", "CLAIM:PATH"]),
        ((*POD, "--name=Mine"), ["--name='Mine'"]),
        ((*POD, "--trainer.devices=2"), ["trainer.devices follows", "--gpus-per-node"]),
        ((*POD, "--model.no_such=1"), ["no_such"]),
        ((*POD, "--api_key=sk-abcdefghijklmnop1234567890"), ["looks like a secret", "--env-from"]),
    ],
)
def test_what_cannot_work_is_one_message(manifest, args, words):
    message = manifest(*args)
    assert isinstance(message, str) and message.count("llm-lightning: error: ") == 1 and "Traceback" not in message
    assert all(word in message for word in words), message


def test_a_secret_in_a_file_is_refused(manifest, folder):
    (folder / "key.yaml").write_text("data: {path: 'https://me:hunter2@example.org/texts.jsonl'}\n")
    message = manifest(*POD, "--config", "key.yaml")
    assert "--config key.yaml has something" in message and "--env-from" in message and "hunter2" not in message


def test_names():
    assert name_of("My run, No. 7") == "my-run-no-7"
    assert name_of("7") == "run-7"
    assert len(name_of("a" * 70)) == 40


def agent(folder, cache, *args, nodes=1, rank=0, port=0):
    """What a pod runs, under what the manifest gives it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LLM_LIGHTNING", "PET_"))} | {
        "PYTHONPATH": str(ROOT), "LLM_LIGHTNING_CACHE": str(cache), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "PET_NNODES": str(nodes), "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port or free_port()), "PET_NODE_RANK": str(rank),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60",
    }  # fmt: skip
    command = [sys.executable, "-m", "llm_lightning.launch.agent", *args]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_the_exit_code_is_that_of_the_rank_which_failed(folder, cache):
    process = agent(folder, cache, "fit", "--config", "tiny.yaml", "--model.no_such=1")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and "no_such" in output, output


@pytest.mark.slow
def test_two_pods_save_when_they_are_told_to_go_and_the_same_command_goes_on(folder, cache, fresh_run):
    two = (*FIT, "--data.batch_size=2", "--trainer.devices=1", "--trainer.num_nodes=2", "--trainer.strategy=ddp")
    pace = (
        "--trainer.callbacks+={class_path: tests.slurm.pace.Pace, init_args: {seconds: [0.3], validation_seconds: 0}}"
    )

    def start(*args):
        port = free_port()
        return [agent(folder, cache, *two, *args, nodes=2, rank=rank, port=port) for rank in range(2)]

    straight = [process.communicate(timeout=300)[0] for process in start("--trainer.default_root_dir=straight")]
    pods = start(pace)
    noted = folder / "run" / "rank-0.jsonl"
    while not noted.exists() or len(noted.read_text().splitlines()) < 2:
        assert all(process.poll() is None for process in pods), straight
        time.sleep(0.05)
    for process in pods:
        process.send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120)[0] for process in pods]
    assert [process.returncode for process in pods] == [128 + signal.SIGTERM] * 2, outputs
    assert any("Stopped at step" in output for output in outputs), outputs
    again = start(pace)
    outputs = [process.communicate(timeout=300)[0] for process in again]
    assert [process.returncode for process in again] == [0, 0], outputs
    assert column(folder / "run", "train/loss") == column(folder / "straight", "train/loss")
