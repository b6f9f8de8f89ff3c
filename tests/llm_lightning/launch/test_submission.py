"""`llm-lightning slurm --dry-run`: the scripts, and each wrong flag as one message; `tests/slurm` runs them."""

import shlex
import subprocess

import pytest

from llm_lightning.__main__ import main
from llm_lightning.launch.options import seconds_of

FIT = ("slurm", "fit", "--config", "tiny.yaml", "--time=4:00:00", "--dry-run")


@pytest.fixture
def inputs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def script(capfd, *args):
    assert main(list(args)) == 0
    return capfd.readouterr().out


def directives(text):
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
    return [line.removeprefix("#SBATCH ").split("  #")[0].strip() for line in lines]


def test_gpus(inputs, capfd):
    text = script(
        capfd, *FIT, "--nodes", "2", "--gpus-per-node=8", "--cpus-per-task=6", "--partition=gpu", "--account=lab",
        "--constraint=h100", "--qos=high", "--setup", "module load cuda/13", "--sbatch", "--exclusive", "--after=7,8",
        "--python=python", "--model.schedule.warmup", "3", "--trainer.max_steps", "-1",
    )  # fmt: skip
    assert directives(text) == [
        "--job-name=run", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=6",
        "--time=4:00:00", "--partition=gpu", "--account=lab", "--qos=high", "--constraint=h100",
        "--dependency=afterok:7:8", "--kill-on-invalid-dep=yes", "--signal=SIGUSR1@120", "--requeue",
        "--open-mode=append", "--output=run/slurm/%j.log", "--exclusive",
    ]  # fmt: skip
    command = text[text.index("srun --kill") : text.index("code=$?")].replace("\\\n", " ")
    assert shlex.split(command) == [
        "srun", "--kill-on-bad-exit=1", "python", "-m", "llm_lightning", "fit", "--config=tiny.yaml",
        "--model.schedule.warmup=3", "--trainer.max_steps=-1", "--trainer.accelerator=gpu", "--trainer.devices=8",
        "--trainer.num_nodes=2", "--trainer.default_root_dir=$run",
    ]  # fmt: skip
    assert text.index("module load cuda/13") < text.index("srun --kill")
    assert not (inputs / "run").exists()


def test_cpus(inputs, capfd):
    text = script(capfd, *FIT, "--tasks-per-node=4", "--cpus-per-task=12", "--job-name=mine")
    assert {"--job-name=mine", "--nodes=1", "--ntasks-per-node=4", "--cpus-per-task=12"} <= set(directives(text))
    assert "--trainer.accelerator=cpu" in text and "--trainer.devices=4" in text and "gpu" not in text


def test_a_sweep_is_an_array_of_each_combination(inputs, capfd, tmp_path):
    text = script(capfd, *FIT, "--sweep=model.optimizer.lr=1e-3,3e-3", "--sweep=model.z_loss=0,1e-4")
    assert "--array=0-3" in directives(text) and "--output=run/slurm/%A_%a.log" in directives(text)
    settings = text[text.index("sweep=(") : text.index("max_failures=")]
    task = f'SLURM_ARRAY_TASK_ID=2 SLURM_ARRAY_JOB_ID=7\n{settings}\necho "${{settings[@]}}" $run $job'
    shown = subprocess.run(["bash", "-c", task], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["--model.optimizer.lr=3e-3", "--model.z_loss=0", "run/2", "7_2"]


def test_a_chain_has_a_script_for_each_stage(inputs, capfd):
    tiny = (inputs / "tiny.yaml").read_text()
    for stage in ("one", "two"):
        (inputs / f"{stage}.yaml").write_text(tiny.replace("default_root_dir: run", f"default_root_dir: runs/{stage}"))
    text = script(capfd, "slurm", "chain", "one.yaml", "two.yaml", "--time=60", "--dry-run", "--model.z_loss=1e-4")
    assert text.count("#!/bin/bash") == 2
    assert text.index("--config=one.yaml") < text.index("--config=two.yaml") and text.count("--model.z_loss=1e-4") == 4
    assert {"--job-name=one", "--job-name=two"} <= set(directives(text))
    assert main(["slurm", "chain", "one.yaml", "one.yaml", "--time=60", "--dry-run"]) == 2
    assert "share a run folder" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--time="], ["--time is missing", "--time 4:00:00"]),
        (["--time=soon"], ["--time='soon'", "hours:minutes:seconds"]),
        (["--time=2"], ["--stop-before=120", "--time=2 (minutes)"]),
        (["--nodes=0"], ["--nodes=0 is below 1"]),
        (["--nodes=two"], ["--nodes", "two"]),
        (["--gpus-per-node=2", "--tasks-per-node=2"], ["--tasks-per-node", "--gpus-per-node", "one of them"]),
        (["--max-failures=0"], ["--max-failures=0 is below 1"]),
        (["--trainer.devices=4"], ["--trainer.devices", "--gpus-per-node"]),
        (["--trainer.num_nodes", "4"], ["--trainer.num_nodes", "--nodes"]),
        (["--job-name=bash"], ["--job-name=bash", "shell"]),
        (["--partition=a b"], ["--partition='a b'"]),
        (["--after=1,x"], ["--after=1,x", "'x'"]),
        (["--sbatch=exclusive"], ["--sbatch='exclusive'"]),
        (["--sweep=lr"], ["--sweep='lr'"]),
        (["--sweep=model.optimizer.lr=1,x"], ["model.optimizer.lr", "x"]),
        (["--node=2"], ["no setting --node"]),
        (["--trainer.max_step=3"], ["no setting --trainer.max_step"]),
        (["--setup=if true"], ["--setup", "bash"]),
        (["--setup=export WANDB_API_KEY=0123abc"], ["--setup", "secret", "environment"]),
        (["--trainer.logger.api_key=abc"], ["--trainer.logger.api_key", "secret"]),
        (["--data.engine={init_args: {extra: {api_key: abc}}}"], ["--data.engine", "secret"]),
        (["--sweep", "data.engine.init_args.extra.api_key=abc,def"], ["--sweep", "secret"]),
        (["--setup", "curl -H 'Authorization: Bearer abc' host"], ["--setup", "secret"]),
        (["--data.path=https://me:abc@host/a.jsonl"], ["--data.path", "secret"]),
    ],
)
def test_a_wrong_flag(inputs, capfd, args, words):
    assert main([*FIT, *args]) == 2
    message = capfd.readouterr().err
    assert all(word in message for word in words), message
    assert "Traceback" not in message and "0123abc" not in message and len(message.strip().splitlines()) <= 4
    assert not (inputs / "run").exists()


def test_a_wrong_command(inputs, capfd):
    assert main(["slurm", "train", "--time=60"]) == 2
    assert "slurm train: there are fit" in capfd.readouterr().err
    assert main(["slurm", "chain", "--config=tiny.yaml", "--time=60"]) == 2
    assert "YAML of each stage" in capfd.readouterr().err


def test_without_slurm(inputs, capfd, monkeypatch, tmp_path):
    (tmp_path / "bash").symlink_to("/bin/bash")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["slurm", "fit", "--config", "tiny.yaml", "--time=60"]) == 2
    assert "no sbatch on this machine" in capfd.readouterr().err
    assert not (inputs / "run").exists()


@pytest.mark.parametrize(
    ("time", "seconds"), [("90", 5400), ("1:30", 90), ("1:00:00", 3600), ("2-1", 176400), ("1-0:10", 87000)]
)
def test_times(time, seconds):
    assert seconds_of(time) == seconds
