"""A stranger's run folder cannot run code in the commands that read its checkpoints."""

import pickle
from pathlib import Path

import pytest
import torch

TINY = ("--config", "tiny.yaml", "--trainer.max_steps=3")
PARTS = ("--trainer.strategy=fsdp2",)
LIGHTNINGS = (
    "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy",
    "--trainer.strategy.tensor_parallel_size=1",
)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.slow  # four runs
def test_no_command_runs_what_is_planted(run, folder):
    code, output = run("fit", *TINY, *PARTS)
    assert code == 0, output
    marker, checkpoint = folder / "marker", folder / "run" / "checkpoints" / "step=3.ckpt"
    code, output = run("validate", *TINY, *PARTS)
    assert code == 0 and "val/loss" in output, output
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    metadata.planner_data = Evil(marker)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    for command in (("fit", "--trainer.max_steps=5"), ("validate",)):
        code, output = run(command[0], *TINY, *PARTS, *command[1:])
        assert code == 2 and "cannot be read safely" in output and "Traceback" not in output, output
        assert not marker.exists()


@pytest.mark.slow
def test_lightnings_own_sharded_strategy_is_refused_before_training(run, folder):
    code, output = run("fit", *TINY, *LIGHTNINGS)
    assert code == 2 and "Lightning's own" in output, output
    torch.save({"x": Evil(folder / "marker")}, folder / "step=3.ckpt")
    code, output = run("validate", *TINY, f"--ckpt_path={folder / 'step=3.ckpt'}")
    assert code == 2 and "cannot be read as a checkpoint" in output, output
    assert not (folder / "marker").exists()
