"""Settings, data and models that were changed before a run goes on."""

import csv
import json
import shutil

import pytest
import yaml

FIT = ("fit", "--config=tiny.yaml", "--trainer.val_check_interval=1000")


def rates(folder):
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): float(row["train/lr"]) for row in csv.DictReader(file) if row["train/lr"]}


@pytest.mark.slow
def test_what_takes_effect_is_said_and_true_and_the_rest_is_refused(run, folder):
    assert run(*FIT, "--trainer.max_steps=6")[0] == 0
    root, before = folder / "run", (folder / "run" / "config.yaml").read_text()
    refused = {
        "model.backbone.config.hidden_act": ("gelu",),
        "model.backbone.config.num_attention_heads": ("2",),
        "data.seq_len": ("32",),
        "model.optimizer": ("torch.optim.SGD", "--model.optimizer.lr=0.1"),
    }
    for name, (value, *more) in refused.items():
        code, output = run(*FIT, "--trainer.max_steps=12", f"--{name}={value}", *more)
        assert code == 2 and f"error: {name}: the run in run was begun with" in output and "--resume false" in output
    assert (root / "config.yaml").read_text() == before

    code, output = run(
        *FIT, "--trainer.max_steps=12", "--model.optimizer.lr=6e-5", "--model.optimizer.weight_decay=0.5"
    )
    assert code == 0 and "trainer.max_steps 6 -> 12" in output and "model.optimizer.lr 0.0006 -> 6e-05" in output
    assert run(*FIT, "--trainer.max_steps=12", "--trainer.default_root_dir=straight")[0] == 0
    of_twelve = rates(folder / "straight")
    for step in range(7, 13):  # the first one too is of the longer schedule, and of the new peak
        assert abs(rates(root)[step] / of_twelve[step] - 0.1) < 1e-6
    text = (root / "config.yaml").read_text()
    assert "from step 6: " in text and "model.optimizer.lr 0.0006 -> 6e-05" in text
    optimizer = yaml.safe_load(text)["model"]["init_args"]["optimizer"]["init_args"]
    assert optimizer["lr"] == 6e-5 and optimizer["weight_decay"] == 0.5
    import torch

    groups = torch.load(root / "checkpoints" / "step=12.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]

    # Of a folder without config.yaml the checkpoint itself tells that the optimizer was another one.
    (root / "config.yaml").unlink()
    code, output = run(*FIT, "--trainer.max_steps=14", "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1")
    assert code == 2 and "model.optimizer: the checkpoint is of another one" in output, output

    for text in ("a: !!python/object:os.system {}\n", "- 1\n", "a: [\n"):
        (root / "config.yaml").write_text(text)
        code, output = run(*FIT, "--trainer.max_steps=14")
        assert code == 2 and "run/config.yaml" in output and "Traceback" not in output


@pytest.mark.slow
def test_other_data_or_another_network_in_a_used_folder(run, folder, network):
    for name in ("pairs", "others"):
        pairs = [{"question": f"What is {i}?", "answer": f"{name} {i}"} for i in range(40)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    for name in ("network", "moved", "other"):
        shutil.copytree(network, folder / name)
    file = folder / "other" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.unlink()
    file.write_bytes(content)
    args = (
        "fit", "--model=SupervisedFinetuning", "--model.backbone.path=network", "--data=InstructionDataModule",
        "--data.path=pairs.jsonl", "--data.seq_len=64", "--trainer.accelerator=cpu", "--trainer.devices=1",
        "--trainer.precision=32-true", "--trainer.default_root_dir=run",
    )  # fmt: skip
    for killed in (True, False):
        at = "{class_path: tests.signals.SignalAt, init_args: {name: SIGTERM, step: 0}}"
        code, output = run(*args, f"--trainer.callbacks+={at}" if killed else "--trainer.log_every_n_steps=1")
        assert code == (143 if killed else 0), output
        before = (folder / "run" / "config.yaml").read_text()
        code, output = run(*args, "--data.path=others.jsonl")
        assert code == 2 and "not those of the checkpoint" in output and "--resume false" in output, output
        code, output = run(*args, "--model.backbone.path=other")
        assert code == 2 and "another network" in output and "--resume false" in output, output
        assert (folder / "run" / "config.yaml").read_text() == before
    (folder / "pairs.jsonl").rename(folder / "same.jsonl")
    code, output = run(*args, "--model.backbone.path=moved", "--data.path=same.jsonl")
    assert code == 0 and "This run is finished" in output, output
