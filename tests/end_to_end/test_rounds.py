"""Rounds by the command line: a model writes pairs, learns from them, and what came out writes the next ones."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoTokenizer

from tests.command_line import ROOT
from tests.config_files import adamw, config_of, part
from tests.end_to_end.test_reward import LORA
from tests.wandb_logs import read

TEMPLATE = Path(__file__).parents[2] / "datamodules" / "templates" / "chatml.jinja"
WITH_DIGITS = {"class_path": "llm_lightning.rewards.Pattern", "init_args": {"pattern": "[0-9]"}}
CONFIG = config_of(
    part("PreferenceOptimization", backbone={"path": "network"}, optimizer=adamw(1e-3), peft=LORA),
    part(
        "SyntheticDataModule",
        folder="pairs",
        data=part("PreferenceDataModule", seq_len=128, batch_size=4, val_share=0.2),
        generators={
            "sampled": part(
                "PreferencePairs", path="prompts.jsonl", count=120, max_new_tokens=60, top_p=1.0, scorer=WITH_DIGITS
            )
        },
    ),
    max_steps=4, val_check_interval=2,
)  # fmt: skip


@pytest.fixture
def prompts(folder, network):
    """A folder with a network and questions, without any answer."""
    shutil.copytree(network, folder / "network")
    tokenizer = AutoTokenizer.from_pretrained(folder / "network")
    tokenizer.chat_template = TEMPLATE.read_text()
    tokenizer.save_pretrained(folder / "network")
    lines = [json.dumps({"prompt": f"What is {number} plus 2?"}) for number in range(200)]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    (folder / "tiny.yaml").write_text(CONFIG + "rounds: 2\n")
    return folder


def weights(root):
    checkpoint = torch.load(root / "checkpoints" / "step=4.ckpt", weights_only=True)
    return checkpoint["state_dict"]


def has_trained(root):
    metrics = root / "metrics.csv"
    return metrics.exists() and "train/loss" in metrics.read_text()


@pytest.mark.slow
def test_what_came_out_of_a_round_writes_the_pairs_of_the_next_one(fresh_run, prompts):
    code, output = fresh_run("fit", "--config", "tiny.yaml")
    assert code == 0, output
    assert "Round 1 of 2, in run/round-1: network writes" in output
    assert "Round 2 of 2, in run/round-2: run/round-1/merged writes" in output
    first, second = (yaml.safe_load((prompts / "run" / f"round-{n}" / "config.yaml").read_text()) for n in (1, 2))
    assert second["model"]["init_args"]["backbone"]["path"] == "run/round-1/merged"
    assert first["data"]["init_args"]["engine"]["init_args"]["path"] == "network"
    assert second["data"]["init_args"]["engine"]["init_args"]["path"] == "run/round-1/merged"
    made = [pq.read_table(prompts / "pairs" / f"round-{n}" / "synthetic.parquet").to_pylist() for n in (1, 2)]
    models = [{row["provenance"]["model"] for row in rows} for rows in made]
    assert len(models[0]) == len(models[1]) == 1 and models[0] != models[1]
    asked = [[row["messages"][0]["content"] for row in rows] for rows in made]
    assert asked[0] != asked[1]
    assert all(any(map(str.isdigit, row["chosen"])) for rows in made for row in rows)
    assert not any(any(map(str.isdigit, row["rejected"])) for rows in made for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["pairs/round-2/calls", "run/round-2/checkpoints"])
def test_killed_rounds_go_on_to_the_same_weights(fresh_command, fresh_run, prompts, moment):
    settings = ("--trainer.default_root_dir=straight", "--data.folder=pairs-straight")
    code, output = fresh_run("fit", "--config", "tiny.yaml", *settings)
    assert code == 0, output
    process = fresh_command("fit", "--config", "tiny.yaml")
    while process.poll() is None and not (prompts / moment).exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    code, output = fresh_run("fit", "--config", "tiny.yaml")
    assert code == 0, output
    ours, theirs = (weights(prompts / root / "round-2") for root in ("run", "straight"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    code, output = fresh_run("fit", "--config", "tiny.yaml")
    assert code == 0 and output.count("This run is finished") == 2 and "Generating" not in output, output


@pytest.mark.slow
def test_two_ranks_of_torchrun_go_through_the_rounds_in_step(prompts, cache):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLM_LIGHTNING")} | {
        "PYTHONPATH": str(ROOT), "LLM_LIGHTNING_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [*launch, "llm_lightning", "fit", "--config", "tiny.yaml", "--trainer.devices=2"]
    done = subprocess.run(command, cwd=prompts, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("Round 2 of 2") == 1
    assert (prompts / "run" / "round-2" / "model" / "best" / "adapter_config.json").exists()


@pytest.mark.slow
def test_a_stopped_round_stops_the_rounds(fresh_command, prompts):
    process = fresh_command("fit", "--config", "tiny.yaml", "--trainer.max_steps=100000")
    while process.poll() is None and not has_trained(prompts / "run" / "round-1"):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "Stopped at step" in output and not (prompts / "run" / "round-2").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--rounds=0"], "rounds=0 must be at least 1"),
        (["--ckpt_path=x.ckpt"], "--ckpt_path belongs to a single run"),
        (["--config", "prefix.yaml"], "PREFIX_TUNING cannot be merged for the next round: its parts change what"),
        (["--data.generators={again: {class_path: Paraphrase}}"], "again (Paraphrase) begins with real records"),
        (["--data.share=0"], "with share=0 nothing is written"),
    ],
)
def test_mistakes_are_found_before_the_first_round(run, prompts, settings, words):
    peft = part("peft.PrefixTuningConfig", num_virtual_tokens=2)
    (prompts / "prefix.yaml").write_text(yaml.dump({"model": {"init_args": {"peft": peft}}}))
    code, output = run("fit", "--config", "tiny.yaml", *settings)
    assert code == 2 and words in output and "Traceback" not in output, output
    assert not (prompts / "run" / "round-1").exists()


def test_rounds_want_data_that_a_model_writes(run, prompts):
    (prompts / "pairs.yaml").write_text(
        config_of(part("PreferenceOptimization", backbone={"path": "network"}), part("PreferenceDataModule", path="x"))
    )
    code, output = run("fit", "--config", "pairs.yaml", "--rounds=3")
    assert code == 2 and "rounds=3: in each round the model writes its own data" in output, output


@pytest.mark.slow
def test_wandb_shows_the_rounds_as_one_group(fresh_run, prompts):
    offline = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
    code, output = fresh_run(
        "fit", "--config", "tiny.yaml", "--config", f"{ROOT}/configs/logger/wandb.yaml", env=offline
    )
    assert code == 0, output
    logs = [next((prompts / "run" / f"round-{number}").rglob("offline-run-*")) for number in (1, 2)]
    runs = [next(record["run"] for record in read(log) if record["type"] == "run") for log in logs]
    assert len({run["run_id"] for run in runs}) == 2
    assert len({run["run_group"] for run in runs}) == 1 and runs[0]["run_group"], runs
