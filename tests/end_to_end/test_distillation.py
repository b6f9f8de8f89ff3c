"""Distillation by the command line: a student comes near its teacher, is killed and goes on, and mistakes."""

import csv
import json
import shutil

import pytest
import torch
import yaml

from tests.config_files import adamw, config_of, part, samples_of, saves_every
from tests.end_to_end.test_resume import kill_after_steps, losses, weights

DATA = part("InstructionDataModule", path="pairs.jsonl", seq_len=64, batch_size=2, val_share=0.1, template="chatml")
TEACHER = config_of(
    part("SupervisedFinetuning", backbone={"path": "network"}, optimizer=adamw(1e-2)), DATA,
    default_root_dir="taught", max_steps=24, val_check_interval=24,
)  # fmt: skip
CONFIG = config_of(
    part(
        "Distillation", backbone={"path": "network", "dropout": 0.1}, teacher={"path": "taught/model/last"},
        optimizer=adamw(1e-2), objective={"labels_weight": 0.0},
    ),
    DATA, max_steps=24, val_check_interval=8, accumulate_grad_batches=2, callbacks=[saves_every(3), samples_of(4)],
)  # fmt: skip


@pytest.fixture
def taught(run, folder, network):
    """A folder with a teacher that learned some pairs, and a network that is to learn from it."""
    (folder / "network").symlink_to(network)
    pairs = [{"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}."} for i in range(80)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "teacher.yaml").write_text(TEACHER)
    (folder / "tiny.yaml").write_text(CONFIG)
    code, output = run("fit", "--config", "teacher.yaml")
    assert code == 0, output
    return folder


def logged(root, name):
    with (root / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_a_student_learns_from_its_teacher_alone_and_goes_on_bit_for_bit(command, run, taught):
    code, output = run("fit", "--config", "tiny.yaml", "--trainer.default_root_dir=straight")
    assert code == 0, output
    divergences = logged(taught / "straight", "val/divergence")
    assert divergences[-1] < divergences[0] and logged(taught / "straight", "train/divergence")[0] > 5 * divergences[-1]
    assert logged(taught / "straight", "val/loss")[-1] < logged(taught / "straight", "train/loss")[0] / 2
    from transformers import AutoModelForCausalLM, AutoTokenizer

    last = taught / "straight" / "model" / "last"
    assert AutoModelForCausalLM.from_pretrained(last) and AutoTokenizer.from_pretrained(last).chat_template

    assert kill_after_steps(command, taught, 8)
    code, output = run("fit", "--config", "tiny.yaml")
    assert code == 0 and "Going on from" in output, output
    assert losses(taught / "run") == losses(taught / "straight")
    ours, theirs = weights(taught / "run"), weights(taught / "straight")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not any("teacher" in name for name in ours)

    code, output = run("predict", "--config", "tiny.yaml")
    assert code == 0 and (taught / "run" / "predictions.jsonl").exists(), output

    shutil.copytree(last, taught / "other")
    code, output = run("fit", "--config", "tiny.yaml", "--model.teacher.path=other", "--trainer.max_steps=30")
    assert code == 2 and "learned from another teacher than other" in output, output


@pytest.mark.parametrize("data", [pytest.param("TextDataModule", marks=pytest.mark.slow), "InstructionDataModule"])
def test_an_ensemble_and_an_adapter_on_the_student(run, taught, data):
    settings = ["--model.ensemble=[{path: taught/model/best}]"]
    if data == "TextDataModule":
        settings = ["--data=TextDataModule", "--data.path=texts.jsonl", "--data.seq_len=64", "--data.batch_size=2"]
        settings += ["--model.ensemble=[{path: network}]"]
    code, output = run(
        "fit", "--config", "tiny.yaml", "--config", "peft/lora", *settings,
        "--model.weights=[0.25,0.75]", "--model.objective.kind=reverse_kl", "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
    )  # fmt: skip
    assert code == 0, output
    assert (taught / "run" / "model" / "last" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--model.teacher.path=nowhere"], "model.teacher.path='nowhere' cannot be read"),
        (["--model.objective.temperature=0"], "model.objective.temperature=0.0 must be above 0"),
        (["--model.objective.labels_weight=2"], "labels_weight=2.0 must be at least 0 and at most 1"),
        (["--model.objective.beta=0.2"], "beta has no effect on kind=forward_kl"),
        (["--model.weights=[1.0,2.0]"], "there are 1 teachers"),
        (["--model.weights=[0.0]"], "a weight must be above 0"),
        (["--model.z_loss=0.1"], "model.z_loss=0.1 is for training without a teacher"),
        (["--model.teacher.path=network"], "has no chat template, so that it does not know conversations"),
        (
            ["--model.teacher.path=words"],
            "has another vocabulary: 1 tokens differ, such as '<|new|>' (none in the data",
        ),
        (["--model.teacher.path=turns"], "knows conversations by another chat template: the data's has '<|im_start|>"),
    ],
)
def test_mistakes(run, taught, settings, words):
    from transformers import AutoTokenizer

    for name in ("words", "turns"):
        shutil.copytree(taught / "taught" / "model" / "last", taught / name)
        tokenizer = AutoTokenizer.from_pretrained(taught / name)
        if name == "words":
            tokenizer.add_tokens("<|new|>")
        else:
            tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        tokenizer.save_pretrained(taught / name)
    code, output = run("fit", "--config", "tiny.yaml", *settings)
    assert code == 2 and words in output and "Traceback" not in output, output
    assert not (taught / "run" / "checkpoints").exists()


def test_a_pruned_student_learns_from_the_dense_network(run, taught):
    """Of what the layers that go cost, distillation wins most back."""
    dense = "--model.backbone.path=taught/model/last", "--model.teacher.path=taught/model/last"
    prune = {"structure": part("Structured", layers=0.5), "schedule": part("OneShot", end=2)}
    (taught / "prune.yaml").write_text(yaml.dump({"trainer": {"callbacks": [part("Pruning", **prune)]}}))
    code, output = run(
        "fit", "--config", "tiny.yaml", "--config", "prune.yaml", *dense, "--model.backbone.dropout=0",
        "--model.optimizer.lr=3e-3", "--trainer.val_check_interval=2", "--trainer.accumulate_grad_batches=1",
    )  # fmt: skip
    assert code == 0, output
    divergences = logged(taught / "run", "val/divergence")
    assert divergences[0] > 0.01 and divergences[-1] < divergences[0] / 2
    pruned = json.loads((taught / "run" / "model" / "last" / "config.json").read_text())
    assert pruned["num_hidden_layers"] == 2
