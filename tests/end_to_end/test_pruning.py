"""Pruning by the command line: what is left behind loads elsewhere, and is what was trained."""

import csv
import json
import signal
import time

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.config_files import part


def write(folder, structure, **settings):
    config = yaml.safe_load((folder / "tiny.yaml").read_text())
    pruning = part(
        "Pruning",
        structure=part(structure, **settings),
        criterion="Wanda",
        schedule=part("Cubic", begin=2, end=12, interval=2),
        num_batches=2,
    )
    config["trainer"]["callbacks"].insert(0, pruning)
    (folder / "pruned.yaml").write_text(yaml.safe_dump(config))


def from_folder(folder, path):
    config = yaml.safe_load((folder / "pruned.yaml").read_text())
    backbone = config["model"]["init_args"]["backbone"]
    del backbone["config"], config["data"]["init_args"]["vocab_size"]
    backbone["path"] = path
    (folder / "pruned.yaml").write_text(yaml.safe_dump(config))


FIT = ("fit", "--config", "pruned.yaml")


def last(folder, name):
    with (folder / "metrics.csv").open() as file:
        return [row[name] for row in csv.DictReader(file) if row.get(name)][-1]


def validated(run, *args):
    code, output = run("validate", "--config", "pruned.yaml", *args)
    assert code == 0, output
    return output


def test_structured_leaves_a_smaller_folder_and_the_run_can_still_be_judged(run, folder):
    write(folder, "Structured", channels=0.25, kv_groups=0.5)
    code, output = run(*FIT)
    assert code == 0, output
    config = json.loads((folder / "run" / "model" / "last" / "config.json").read_text())
    assert (config["intermediate_size"], config["num_key_value_heads"], config["num_attention_heads"]) == (48, 1, 2)
    loss = last(folder / "run", "val/loss")[:6]
    assert loss in validated(run), "the checkpoint: masked, at full size"
    from_folder(folder, "run/model/last")
    assert loss in validated(run, "--resume=false"), "the folder: cut"


def test_a_lora_leaves_the_merged_network(run, folder, network):
    (folder / "network").symlink_to(network)
    write(folder, "Unstructured", sparsity=0.5)
    from_folder(folder, "network")
    lora = ("--model.peft=peft.LoraConfig", "--model.peft.r=4", "--model.peft.target_modules=all-linear",
            "--model.optimizer.lr=1e-2")  # fmt: skip
    code, output = run(*FIT, *lora)
    assert code == 0, output
    folder_of = {name: folder / "run" / "model" / name for name in ("last", "best", "dense")}
    assert not (folder_of["last"] / "adapter_config.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(folder_of["last"])
    dense = AutoModelForCausalLM.from_pretrained(network)
    weights = [m.model.layers[0].mlp.up_proj.weight for m in (loaded, dense)]
    assert (weights[0] == 0).float().mean() == pytest.approx(0.5, abs=1e-3)
    assert ((weights[0] - weights[1]).abs() > 1e-4).float().mean() > 0.9, "the adapter is in it"
    loss = last(folder / "run", "val/loss")[:6]
    assert loss in validated(run, *lora), "the checkpoint: the adapter, and the masks on the base as it was read"
    assert loss in validated(run, "--resume=false", "--model.backbone.path=run/model/last")


def losses(folder):
    with (folder / "metrics.csv").open() as file:
        return {row["step"]: row["train/loss"] for row in csv.DictReader(file) if row.get("train/loss")}


@pytest.mark.slow
def test_two_of_four_is_reported_and_a_killed_run_goes_on_to_the_same_bits(command, run, folder):
    write(folder, "NM", n=2, m=4)
    code, output = run(*FIT, "--trainer.default_root_dir=straight")
    assert code == 0, output
    assert "Pruned: 50.0%" in output and "perplexity" in output
    network = AutoModelForCausalLM.from_pretrained(folder / "straight" / "model" / "last")
    assert ((network.model.layers[1].mlp.up_proj.weight != 0).view(-1, 4).sum(1) == 2).all()
    assert float(last(folder / "straight", "pruning/sparsity")) == 0.5
    assert (folder / "straight" / "pruning.png").exists() and (folder / "straight" / "pruning.txt").exists()
    process = command(*FIT)
    while process.poll() is None and not (folder / "run" / "metrics.csv").exists():
        time.sleep(0.01)
    while process.poll() is None and len(losses(folder / "run")) < 8:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, output = run(*FIT)
    assert code == 0, output
    assert losses(folder / "run") == losses(folder / "straight")
    states = [torch.load(folder / n / "checkpoints" / "step=24.ckpt", weights_only=True) for n in ("run", "straight")]
    weights = [state["state_dict"] for state in states]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    masks = [state["callbacks"]["Pruning"]["masks"] for state in states]
    assert all(torch.equal(masks[0][n]["bits"], masks[1][n]["bits"]) for n in masks[0])


def test_a_mistake_ends_in_one_message(run, folder):
    write(folder, "Structured", channels=0.01)
    code, output = run(*FIT)
    message = output[output.index("llm-lightning: error: ") :]
    assert code == 2 and "Traceback" not in output, output
    assert "channels=0.01" in message and "removes some" in message
