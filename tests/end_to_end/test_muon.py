"""A whole run by the overlay for Muon."""

import torch

MUON = ("fit", "--config", "tiny.yaml", "--config", "optimizer/muon", "--model.schedule.kind=constant")


def weights(folder):
    return torch.load(folder / "checkpoints" / "step=12.ckpt", weights_only=True)["state_dict"]


def test_it_goes_on_bit_for_bit_and_refuses_anothers_state(run, folder):
    code, output = run(*MUON, "--trainer.max_steps=12", "--trainer.default_root_dir=straight")
    assert code == 0, output
    for steps in (6, 12):
        code, output = run(*MUON, f"--trainer.max_steps={steps}")
        assert code == 0, output
    ours, expected = weights(folder / "run"), weights(folder / "straight")
    assert all(torch.equal(ours[name], wanted) for name, wanted in expected.items())
    code, output = run("fit", "--config", "tiny.yaml", "--model.schedule.kind=constant", "--trainer.max_steps=14")
    assert code == 2 and "model.optimizer: the run in run was begun with llm_lightning.optimizers.Muon" in output
    assert "Traceback" not in output
