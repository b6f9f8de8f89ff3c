"""A search for the best compression that is killed in its midst and goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from transformers import AutoModelForCausalLM

from tests.command_line import ROOT

CONFIG = ROOT / "configs" / "sweeps" / "compression.yaml"
ONE_SHOT = {"class_path": "OneShot", "init_args": {"end": 4}}
HALF = {"structure": {"class_path": "Structured", "init_args": {"channels": 0.5}}, "schedule": ONE_SHOT}
PRUNINGS = {"dense": None, "channels": {"class_path": "Pruning", "init_args": HALF}}


@pytest.mark.slow
def test_a_killed_search_goes_on_to_one_folder_and_one_picture(tmp_path, texts, network, cache):
    command = [
        sys.executable, "-m", "llm_lightning", "compress", f"--config={CONFIG}", f"--model.backbone.path={network}",
        "--data.path=texts.jsonl", "--data.seq_len=32", "--trainer.max_steps=20", "--trainer.val_check_interval=10",
        f"--trainer.default_root_dir={tmp_path / 'search'}", f"--compress.prunings={json.dumps(PRUNINGS)}",
        "--compress.quantization.max_perplexity_increase=900%",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LLM_LIGHTNING_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    (tmp_path / "texts.jsonl").write_text(texts)
    root = tmp_path / "search"
    log = (tmp_path / "log").open("w")
    first = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)
    end = time.monotonic() + 400
    while not (root / "channels" / "train" / "metrics.csv").exists() and time.monotonic() < end:
        time.sleep(0.1)
    first.kill()
    assert first.wait() == -signal.SIGKILL and (root / "channels" / "train" / "metrics.csv").exists()
    time.sleep(3)  # its child is told to stop
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((root / "compression.json").read_text())
    named = [(row["pruning"], row["scheme"]) for row in rows]
    schemes = ("original", "int8", "int8-dynamic")
    assert named == [(pruning, scheme) for pruning in ("dense", "channels") for scheme in schemes]
    kept = [row for row in rows if row["kept"]]
    held = [row for row in rows if row["refusal"] is None]
    assert len(kept) == 1 and kept[0]["disk_bytes"] == min(row["disk_bytes"] for row in held)
    assert kept[0]["pruning"] == "channels"
    compressed = AutoModelForCausalLM.from_pretrained(root / "model" / "compressed")
    dense = AutoModelForCausalLM.from_pretrained(network)
    assert compressed.config.intermediate_size * 2 == dense.config.intermediate_size
    assert (root / "compression.png").stat().st_size > 1000
    # With another budget nothing is trained again.
    again = subprocess.run(
        [*command, "--compress.quantization.max_megabytes=100"],
        env=environment, capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert again.returncode == 0 and again.stdout.count("This run is finished") + again.stderr.count("is finished") >= 2
