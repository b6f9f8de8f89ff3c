"""`llm-lightning ray`: what it asks Ray for, and real runs on two workers of a real Ray on this machine.

Slow tests take a cluster that is there (RAY_ADDRESS), else each command starts one of its own.
"""

import importlib.util
import json
import os
import signal
import time

import psutil
import pytest
import yaml

from llm_lightning.__main__ import main
from llm_lightning.errors import UserError
from llm_lightning.launch.ray.options import WorkerOptions
from tests.command_line import ROOT
from tests.distributed.test_two_ranks import FIT, column

STEPS = (*FIT[3:], "--model.schedule.kind=constant")
PACE = "--trainer.callbacks+={class_path: tests.slurm.pace.Pace, init_args: {seconds: [1.0], validation_seconds: 0}}"
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")


@pytest.fixture
def planned(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)

    def plan(*args, command="fit"):
        code = main(["ray", command, "--config", "tiny.yaml", *args])
        output = capfd.readouterr()
        return output.err if code else yaml.safe_load(output.out)

    return plan


def test_a_plan(planned):
    plan = planned("--dry-run", "--nodes=2", "--gpus-per-node=8", "--cpus-per-task=4", "--max-restarts=5")
    assert plan["scaling"] == {
        "num_workers": 16, "use_gpu": True, "resources_per_worker": {"CPU": 4, "GPU": 1}, "placement_strategy": "PACK",
    }  # fmt: skip
    assert plan["max_failures"] == 5
    assert plan["command"] == [
        "fit", "--config=tiny.yaml", "--trainer.accelerator=gpu", "--trainer.devices=8", "--trainer.num_nodes=2",
        "--trainer.default_root_dir=run",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "placement"),
    [
        ({"tasks_per_node": 2}, "STRICT_PACK"),
        ({"nodes": 2}, "STRICT_SPREAD"),
        ({"nodes": 2, "gpus_per_node": 8}, "PACK"),
    ],
)
def test_workers_are_spread_as_the_nodes_were_asked_for(options, placement):
    assert WorkerOptions(**options).placement == placement


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--nodes=0",), ["--nodes=0 is below 1"]),
        (("--gpus-per-node=8", "--tasks-per-node=8"), ["--tasks-per-node is for CPUs"]),
        (("--trainer.devices=2",), ["trainer.devices follows"]),
        (("--dry-run", "--model.no_such=1"), ["no_such"]),
        (("--api_key=sk-abcdefghijklmnop1234567890",), ["looks like a secret", "ray start"]),
    ],
)
def test_what_cannot_work_is_one_message(planned, args, words):
    message = planned(*args)
    assert isinstance(message, str) and message.count("llm-lightning: error: ") == 1 and "Traceback" not in message
    assert all(word in message for word in words), message


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="is for machines without Ray")
def test_without_ray_the_extra_is_named(planned):
    assert "llm-lightning[ray]" in planned()


def node(cpus, gpus=0, alive=True):
    return {"Alive": alive, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}}


def test_a_cluster_that_can_never_hold_the_workers_is_refused():
    two = WorkerOptions(nodes=2, gpus_per_node=8)
    two.check_cluster([node(8, 8), node(64, 8), node(4)])
    for nodes in ([node(64, 16)], [node(8, 8), node(8, 8, alive=False)], [node(8, 8), node(7, 8)], []):
        with pytest.raises(UserError, match="2 nodes with 8 CPUs and 8 GPUs"):
            two.check_cluster(nodes)


@pytest.fixture
def ray_command(fresh_command):
    """As `fresh_command`, where Ray may be in a folder of its own."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return lambda *args: fresh_command("ray", "fit", "--config", "tiny.yaml", *args, env={"PYTHONPATH": path})


@needs_ray
@pytest.mark.slow
def test_more_workers_than_processors_are_refused_and_not_waited_for(ray_command):
    process = ray_command("--tasks-per-node=4000")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 2 and "1 node with 4000 CPUs" in output, output


@needs_ray
@pytest.mark.slow
def test_a_mistake_that_only_the_ranks_see_ends_the_run(ray_command, folder):
    (folder / "texts.jsonl").unlink()
    process = ray_command()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 2 and "texts.jsonl" in output, output
    assert "a mistake that another attempt would not mend" in output and "Traceback" not in output.splitlines()[-1]


@needs_ray
@pytest.mark.slow
def test_a_killed_worker_a_killed_driver_and_one_worker_instead_of_two(ray_command, fresh_run, folder):
    rows = {1: "--data.batch_size=4", 2: "--data.batch_size=2"}
    code, output = fresh_run("fit", "--config=tiny.yaml", *STEPS, rows[1], "--trainer.default_root_dir=straight")
    assert code == 0, output
    on_two = (*STEPS, rows[2], "--trainer.strategy=ddp", "--tasks-per-node=2", PACE)

    driver = ray_command(*on_two)
    try:
        first = ranks_at(folder, 4, driver)
        os.kill(psutil.Process(first[1]).ppid(), signal.SIGKILL)  # Ray's worker, with which its rank dies
        (folder / "run" / "rank-0.jsonl").unlink()
        second = ranks_at(folder, 7, driver)
        assert not set(first.values()) & set(second.values())
    finally:
        driver.kill()
        driver.communicate()
    deadline = time.monotonic() + 120
    while any(psutil.pid_exists(rank) for rank in second.values()):
        assert time.monotonic() < deadline, "ranks outlive their driver"
        time.sleep(0.2)

    last = ray_command(*STEPS, rows[1])
    output, _ = last.communicate(timeout=600)
    assert last.returncode == 0 and "step=6.ckpt" in output, output
    assert column(folder / "run", "train/loss") == pytest.approx(column(folder / "straight", "train/loss"), rel=1e-5)


def ranks_at(folder, step, driver):
    """Process ids by rank, once the first one has made a step."""
    noted = folder / "run" / "rank-0.jsonl"
    while not noted.exists() or not any(json.loads(line)["step"] >= step for line in noted.read_text().splitlines()):
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.1)
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        # Loader workers have the words of their rank, and another parent.
        ours = words[1:3] == ["-m", "llm_lightning.launch.ray.rank"] and words[3] == str(process.ppid())
        if ours and process.cwd() == str(folder):
            found[int(process.environ()["RANK"])] = process.pid
    assert found.keys() == {0, 1}
    return found
