"""A run with noise in training, with small steps and short documents at first, goes on bit for bit."""

import csv

import torch

NOISE = ("fit", "--config=tiny.yaml", "--model.schedule.kind=constant", "--model.label_smoothing=0.1",
         "--trainer.callbacks+=NEFTune", "--trainer.callbacks+=StochasticDepth",
         "--trainer.callbacks+=LayerDrop", "--data.length_curriculum={start: 8, tokens: 4000}",
         "--trainer.callbacks+={class_path: BatchSizeWarmup, init_args: {length: 1800}}")  # fmt: skip


def column(folder, name):
    with (folder / "metrics.csv").open() as file:
        return [row[name] for row in csv.DictReader(file) if row.get(name)]


def weights(folder):
    return torch.load(folder / "checkpoints" / "step=12.ckpt", weights_only=True)["state_dict"]


def test_it_goes_on_bit_for_bit(run, folder):
    code, output = run(*NOISE, "--trainer.default_root_dir=straight", "--trainer.max_steps=12")
    assert code == 0, output
    for steps in (6, 12):
        code, output = run(*NOISE, f"--trainer.max_steps={steps}")
        assert code == 0, output
    ours, expected = (weights(folder / name) for name in ("run", "straight"))
    assert all(torch.equal(ours[name], wanted) for name, wanted in expected.items())
    for name in ("run", "straight"):
        sizes = [float(size) for size in column(folder / name, "train/micro_batches")]
        assert sizes[0] == 1 and sizes[-1] == 2 and sorted(sizes) == sizes
    code, output = run(*NOISE, "--model.label_smoothing=1.5", "--trainer.default_root_dir=other")
    assert code == 2 and "model.label_smoothing=1.5 must be at least 0 and below 1" in output
