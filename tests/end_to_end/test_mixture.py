"""A run over two sources whose shares change, stopped in the middle, and the validation loss of each."""

import csv
import json

import pytest
import torch


@pytest.fixture
def sources(folder, texts):
    """Documentation of Python, and a text of its own kind."""
    (folder / "docs.jsonl").write_text(texts)
    counting = [" ".join(str(number) for number in range(start, start + 150)) for start in range(0, 4_000, 100)]
    (folder / "numbers.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in counting))
    return [
        {"path": "docs.jsonl", "weight": 4},
        {"path": "numbers.jsonl", "weight": 0, "weight_schedule": [[3000, 0], [9000, 4]], "max_epochs": 2},
    ]


def fit(run, sources, *args):
    mixture = ("--data.path=null", f"--data.sources={json.dumps(sources)}", "--data.num_workers=1")
    return run("fit", "--config=tiny.yaml", *mixture, "--model.schedule.kind=constant", *args)


def weights(folder):
    return torch.load(folder / "checkpoints" / "step=24.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_it_goes_on_in_mid_schedule_and_each_source_has_its_loss(run, folder, sources):
    code, output = fit(run, sources, "--trainer.default_root_dir=straight")
    assert code == 0, output
    assert "docs: " in output and "% of the run's rows" in output
    for steps in (10, 24):
        code, output = fit(run, sources, f"--trainer.max_steps={steps}")
        assert code == 0, output
    ours, expected = weights(folder / "run"), weights(folder / "straight")
    assert all(torch.equal(ours[name], wanted) for name, wanted in expected.items())
    with (folder / "run" / "metrics.csv").open() as file:
        losses = [row for row in csv.DictReader(file) if row.get("val/loss")]
    assert len(losses) >= 3
    for row in losses:
        low, high = sorted((float(row["val/loss/docs"]), float(row["val/loss/numbers"])))
        assert low < float(row["val/loss"]) < high

    sources[1]["weight_schedule"][1][1] = 5
    code, output = fit(run, sources, "--trainer.max_steps=30")
    assert code == 2 and "Traceback" not in output and "not those of the checkpoint" in output


def test_too_little_is_said_before_the_first_step(run, folder, sources):
    sources[0]["max_epochs"] = sources[1]["max_epochs"] = 0.1
    code, output = fit(run, sources)
    assert code == 2 and "every source is used up (max_epochs)" in output and "Traceback" not in output
    assert not (folder / "run" / "checkpoints").exists()
