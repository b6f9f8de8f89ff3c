"""The whole path from text to a model folder."""

import csv
import json
import subprocess
import sys
import time

import torch

FIT = ("fit", "--config", "tiny.yaml")

LOGITS_IN_A_CLEAN_PROCESS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("Return the sum of the items.", return_tensors="pt").input_ids
torch.save({"ids": ids, "logits": model(ids).logits.detach()}, sys.argv[2])
assert not any(name.startswith(("llm_lightning", "lightning")) for name in sys.modules)
"""


def test_a_run_leaves_everything_behind(run, folder):
    code, output = run(*FIT, "--trainer.max_steps=40", "--model.optimizer.lr=1e-2")
    assert code == 0, output
    root = folder / "run"
    for name in ("config.yaml", "metrics.csv", "curves.png", "checkpoints/step=40.ckpt", "samples/step-000040.txt"):
        assert (root / name).is_file(), name
    command = "llm-lightning fit --config tiny.yaml --trainer.max_steps=40 --model.optimizer.lr=1e-2"
    assert (root / "commands.txt").read_text().rstrip().endswith(f": {command}")
    page = (root / "report.html").read_text()
    assert command in page and "<dd>finished</dd>" in page and "<dd>40</dd>" in page and "step 40" in page
    with (root / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {name for row in rows for name, value in row.items() if value}
    assert names >= {
        "tokens", "train/loss", "train/perplexity", "train/bits_per_byte", "train/lr", "train/grad_norm",
        "train/skipped_steps", "val/loss", "val/perplexity", "val/bits_per_byte", "throughput/tokens_per_s",
        "throughput/mfu", "throughput/memory_mb",
    }  # fmt: skip
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert losses[-1] < losses[0] - 0.5
    assert "bits per byte" in output and "model/last" in output and "Traceback" not in output

    checkpoint = torch.load(root / "checkpoints" / "step=40.ckpt", weights_only=True)
    assert "_instantiator" not in str(checkpoint.get("hyper_parameters"))

    out = folder / "logits.pt"
    subprocess.run(
        [sys.executable, "-c", LOGITS_IN_A_CLEAN_PROCESS, str(root / "model" / "last"), str(out)], check=True, cwd="/"
    )
    saved = torch.load(out)
    from llm_lightning.models.backbone import Backbone

    network = Backbone(path=str(root / "model" / "last")).build().eval()
    network.load_state_dict(
        {name.removeprefix("model."): t for name, t in checkpoint["state_dict"].items() if name.startswith("model.")}
    )
    torch.testing.assert_close(network(saved["ids"]).logits, saved["logits"], rtol=1e-5, atol=1e-5)

    code, output = run("validate", "--config", "tiny.yaml")
    assert code == 0 and "step=40.ckpt" in output
    last = [row["val/loss"] for row in rows if row["val/loss"]][-1]
    assert f"{float(last):.3f}" in output

    code, output = run("predict", "--config", "tiny.yaml")
    assert code == 0, output
    predictions = [json.loads(line) for line in (root / "predictions.jsonl").read_text().splitlines()]
    assert predictions and all(set(p) == {"prompt", "continuation"} for p in predictions)


def test_another_models_checkpoint_is_refused_and_kept(run, folder):
    assert run(*FIT, "--trainer.max_steps=3")[0] == 0
    before = (folder / "run" / "checkpoints" / "step=3.ckpt").read_bytes()
    code, output = run(*FIT, "--model.backbone.config.hidden_size=48")
    assert code == 2 and "model.backbone.config.hidden_size: the run in run was begun with" in output
    assert "--resume false" in output and "Traceback" not in output
    assert (folder / "run" / "checkpoints" / "step=3.ckpt").read_bytes() == before


def test_settings_from_everywhere(run, folder):
    """A later YAML over an earlier one, the environment over both, a flag over all."""
    (folder / "overlay.yaml").write_text("trainer: {max_steps: 7, log_every_n_steps: 2}\nseed_everything: 5\n")
    code, output = run(
        *FIT, "--config", "overlay.yaml", "--trainer.max_steps=9", "--print_config",
        env={"LLM_LIGHTNING__SEED_EVERYTHING": "6", "LLM_LIGHTNING__TRAINER__MAX_STEPS": "8",
             "LLM_LIGHTNING__MODEL__OPTIMIZER__LR": "0.125"},
    )  # fmt: skip
    assert code == 0
    assert "max_steps: 9" in output and "log_every_n_steps: 2" in output and "seed_everything: 6" in output
    assert "lr: 0.125" in output


def test_a_secret_reaches_no_file(run, folder):
    secret = "hf_" + "a1B2" * 8
    code, _ = run(*FIT, "--trainer.max_steps=2", f"--model.generation={{stop_strings: [{secret}]}}")
    assert code == 0
    for path in (folder / "run").rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes(), path


def test_help_is_quick_and_imports_nothing():
    code = (
        "import sys; from llm_lightning.__main__ import main; main(['--help'])\n"
        "assert not {'torch', 'transformers', 'lightning'} & set(sys.modules)"
    )
    start = time.perf_counter()
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert time.perf_counter() - start < 1.5
    assert "llm-lightning fit --config quickstart/pretrain" in output
