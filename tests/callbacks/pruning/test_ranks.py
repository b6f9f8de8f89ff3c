"""Two ranks, and runs that are killed, in real processes."""

import os
import signal

import pytest
import torch

from callbacks import Pruning
from callbacks.pruning import Cubic, Magnitude, OneShot, Unstructured
from callbacks.pruning.masks import unpack
from tests.callbacks.pruning import runs
from tests.callbacks.pruning.fits import Chosen
from tests.callbacks.tiny_llama import TinyData, tiny_trainer
from tests.callbacks.tiny_run import exit_codes, finish, free_port, recorded, running, wait_until

TWENTY = {"max_steps": 16, "val_check_interval": 16}


def mask(state, name):
    entry = state["masks"][name]
    return unpack(entry["bits"], torch.Size(entry["shape"]))


def test_two_ranks_hold_one_mask(processes, tmp_path):
    settings = {"world_size": 2, "port": free_port(), "callbacks": runs.wanda}
    assert finish(processes, tmp_path, **settings, **TWENTY) == [0, 0], (tmp_path / "output-0.txt").read_text()
    one, two = (runs.dumped(tmp_path, rank) for rank in (0, 1))
    assert one["sparsity"] == pytest.approx(0.5, abs=1e-3)
    for name, entry in one["masks"].items():
        assert torch.equal(entry["bits"], two["masks"][name]["bits"])
        assert torch.equal(one["after"][name] != 0, mask(one, name))


@pytest.mark.parametrize("scope", ["rows", "matrix", "network"])
def test_sharded_ranks_choose_what_one_process_would(processes, tmp_path, scope):
    settings = {"world_size": 2, "port": free_port(), "sharded": True, "callbacks": getattr(runs, scope)}
    codes = finish(processes, tmp_path, **settings, max_steps=4, val_check_interval=4)
    assert codes == [0, 0], (tmp_path / "output-0.txt").read_text()
    state = runs.dumped(tmp_path)
    module = Chosen()
    module.configure_model()
    module.model.load_state_dict(state["before"])
    alone = Pruning(Unstructured(0.3, scope), Magnitude(), OneShot(2), num_batches=0)
    tiny_trainer(tmp_path, callbacks=[alone], max_steps=2).fit(module, TinyData())
    for name, kept in alone.masks.kept.items():
        assert torch.equal(mask(state, name), kept), name
        assert not state["after"][name][~kept].any()
    assert state["sparsity"] == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize(
    ("chosen", "settings"),
    [
        (runs.wanda, {"accumulate_grad_batches": 2}),
        (runs.taylor, {}),
        (runs.wanda, {"world_size": 2}),
        (runs.wanda, {"world_size": 2, "sharded": True}),
        (runs.sparse_gpt, {}),
        (runs.sparse_gpt, {"world_size": 2}),
        (runs.regrow, {}),
        pytest.param(runs.regrow, {"world_size": 2}, marks=pytest.mark.slow),
        pytest.param(runs.regrow, {"world_size": 2, "sharded": True}, marks=pytest.mark.slow),
    ],
    ids=["wanda", "taylor-2:4", "ddp", "fsdp2", "sparse-gpt", "sparse-gpt-ddp", "regrow", "regrow-ddp", "regrow-fsdp2"],
)
def test_a_killed_run_goes_on_to_the_same_bits(processes, tmp_path, chosen, settings):
    settings = {"callbacks": chosen, "every_n_train_steps": 3, **TWENTY, **settings}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    world_size = settings.get("world_size", 1)
    assert finish(processes, straight, port=free_port(), **settings) == [0] * world_size, output(straight)
    at = 8 * settings.get("accumulate_grad_batches", 1)  # between two changes of the masks, behind a checkpoint
    with running(processes, killed, port=free_port(), step_seconds=0.05, **settings) as ranks:
        wait_until(lambda: len(recorded(killed)) >= at)
        for process in ranks:
            os.kill(process.pid, signal.SIGKILL)
        assert exit_codes(ranks) == [-signal.SIGKILL] * world_size
    assert finish(processes, killed, port=free_port(), **settings) == [0] * world_size, output(killed)
    assert recorded(killed) == recorded(straight)
    for rank in range(world_size):
        one, other = runs.dumped(straight, rank), runs.dumped(killed, rank)
        assert one["sparsity"] == other["sparsity"] == pytest.approx(0.5, abs=1e-3)
        assert all(torch.equal(one["after"][name], other["after"][name]) for name in one["after"])


def test_two_ranks_give_one_set_of_weights_and_sharded_ones_are_refused(processes, tmp_path):
    settings = {"world_size": 2, "port": free_port(), "callbacks": runs.sparse_gpt}
    assert finish(processes, tmp_path / "ddp", max_steps=12, val_check_interval=12, **settings) == [0, 0]
    one, two = (runs.dumped(tmp_path / "ddp", rank) for rank in (0, 1))
    assert all(torch.equal(one["after"][name], two["after"][name]) for name in one["after"])
    assert one["sparsity"] == two["sparsity"] == 0.5
    sharded = settings | {"sharded": True, "port": free_port()}
    assert 0 not in finish(processes, tmp_path / "fsdp2", max_steps=12, val_check_interval=12, **sharded)
    assert "SparseGPT needs whole weights" in output(tmp_path / "fsdp2")


def output(root):
    return "\n".join(path.read_text()[-3000:] for path in root.glob("output-*.txt"))


def test_masks_of_two_ranks_are_taken_over_by_one(processes, tmp_path):
    settings = {"callbacks": runs.wanda, "every_n_train_steps": 8, "val_check_interval": 12}
    two = {"world_size": 2, "port": free_port()}
    assert finish(processes, tmp_path, max_steps=12, **two, **settings) == [0, 0], output(tmp_path)
    checkpoint = tmp_path / "checkpoints" / "step=8.ckpt"
    pruning = Pruning(Unstructured(0.5), schedule=Cubic(2, 12, 2), num_batches=0)
    trainer = tiny_trainer(tmp_path, callbacks=[pruning], max_steps=12)
    module = Chosen()
    module.configure_optimizers = lambda: torch.optim.AdamW(module.parameters(), lr=1e-2)
    trainer.fit(module, TinyData(), ckpt_path=checkpoint, weights_only=True)
    assert pruning.sparsity == pytest.approx(0.5, abs=1e-3)
    before = torch.load(checkpoint, weights_only=True)["callbacks"]["Pruning"]
    for name, kept in pruning.masks.kept.items():
        assert not (kept & ~mask(before, name)).any()
