"""Other objectives of pretraining, through the command line."""

import csv

import pytest
import torch
from transformers import AutoTokenizer

CONSTANT = ("--model.schedule.kind=constant", "--model.schedule.warmup=0", "--trainer.val_check_interval=100")


def losses(folder):
    with (folder / "metrics.csv").open() as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row.get("train/loss")]


def weights(folder, step):
    return torch.load(folder / "checkpoints" / f"step={step}.ckpt", weights_only=True)["state_dict"]


def same_after_resuming(run, folder, fit, steps=40):
    """A run that was ended in its middle, read by other workers, and one that was not; returns its losses."""
    for root, until, workers in (("straight", steps, 0), ("run", steps // 2 + 3, 2), ("run", steps, 2)):
        code, output = run(
            *fit, *CONSTANT, f"--trainer.max_steps={until}", f"--data.num_workers={workers}",
            f"--trainer.default_root_dir={root}",
        )  # fmt: skip
        assert code == 0, output
    found, expected = losses(folder / "run"), losses(folder / "straight")
    assert len(expected) == steps and found == expected
    ours, theirs = weights(folder / "run", steps), weights(folder / "straight", steps)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    return [float(loss) for loss in expected]


def test_filling_in_resumes_bit_for_bit_and_learns(run, folder):
    fit = ("fit", "--config=tiny.yaml", "--config=objectives/fim", "--model.optimizer.lr=1e-2")
    fitted = same_after_resuming(run, folder, fit)
    assert sum(fitted[-5:]) / 5 < fitted[0] - 1.0
    markers = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "run" / "model" / "last")
    assert all(len(tokenizer(marker, add_special_tokens=False).input_ids) == 1 for marker in markers)
    assert set(markers) <= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}


def test_a_trained_network_without_markers_gets_new_ones(run, folder, network):
    fit = (
        "fit", "--model=CausalPretraining", f"--model.backbone.path={network}", "--data=TextDataModule",
        "--data.path=texts.jsonl", "--data.seq_len=64", "--data.batch_size=4", "--data.fim.rate=1",
        "--trainer.max_steps=2", "--trainer.default_root_dir=run",
    )  # fmt: skip
    code, output = run(*fit)
    assert code == 2 and "data.fim: the tokenizer has no markers of a family that is known" in output
    assert "Traceback" not in output
    (suggested,) = [
        word for word in output.replace("\n", " ").split("--") if word.startswith("model.backbone.new_tokens")
    ]
    tokens = suggested.split("'")[1]
    code, output = run(*fit, f"--model.backbone.new_tokens={tokens}")
    assert code == 0, output


@pytest.mark.parametrize(("setting", "words"), [("rate=1.5", "rate must lie between 0 and 1"), ("spm=1", "spm")])
def test_a_wrong_setting_is_named(run, folder, setting, words):
    code, output = run("fit", "--config=tiny.yaml", f"--data.fim.{setting}")
    assert code == 2 and words in output and "Traceback" not in output
