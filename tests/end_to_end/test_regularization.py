"""A run with noise in training goes on bit for bit."""

import torch

NOISE = ("fit", "--config=tiny.yaml", "--model.schedule.kind=constant", "--model.label_smoothing=0.1",
         "--trainer.callbacks+=NEFTune", "--trainer.callbacks+=StochasticDepth")  # fmt: skip


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
    code, output = run(*NOISE, "--model.label_smoothing=1.5", "--trainer.default_root_dir=other")
    assert code == 2 and "model.label_smoothing=1.5 must be at least 0 and below 1" in output
