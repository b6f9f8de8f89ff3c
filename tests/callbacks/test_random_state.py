import io
import os
import random
import signal

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from callbacks import RandomState
from callbacks.artifacts.random_state import generator_states, set_generator_states
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_trainer
from tests.callbacks.tiny_run import exit_codes, finish, free_port, recorded, running, wait_until

CPU = torch.device("cpu")


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]


def test_the_generators_draw_again_after_a_round_trip_through_a_safe_checkpoint():
    draws()  # leaves a spare gaussian in Python's and NumPy's generators
    file = io.BytesIO()
    torch.save(generator_states(CPU), file)
    expected = draws()
    file.seek(0)
    set_generator_states(torch.load(file, weights_only=True), CPU)
    assert draws() == expected


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_killed_behind_a_checkpoint_and_its_validation_resumes_bit_for_bit(processes, tmp_path, world_size):
    settings = {"world_size": world_size, "max_steps": 14, "val_check_interval": 5, "every_n_train_steps": 5}
    straight, root = tmp_path / "straight", tmp_path / "killed"
    assert finish(processes, straight, port=free_port(), **settings) == [0] * world_size

    with running(processes, root, port=free_port(), step_seconds=0.03, **settings) as ranks:
        wait_until(lambda: len(recorded(root)) >= 7)
        for process in ranks:
            os.kill(process.pid, signal.SIGKILL)
        exit_codes(ranks)
    assert len(recorded(root)) < 14
    assert finish(processes, root, port=free_port(), **settings) == [0] * world_size
    for rank in range(world_size):
        assert recorded(root, rank) == recorded(straight, rank)


class DrawInValidation(Callback):
    def on_validation_epoch_start(self, *_):
        draws()


def test_validation_does_not_advance_the_generators(tmp_path):
    drawn = []
    for settings in ({"val_check_interval": 2, "num_sanity_val_steps": 2}, {"limit_val_batches": 0}):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        trainer = tiny_trainer(tmp_path, max_steps=6, callbacks=[RandomState(), DrawInValidation()], **settings)
        trainer.fit(TinyModule(), TinyData())
        drawn.append(draws())
    assert drawn[0] == drawn[1]


def test_a_checkpoint_of_another_number_of_ranks_warns_and_keeps_this_runs_seed(tmp_path):
    callback = RandomState()
    trainer = tiny_trainer(tmp_path, callbacks=[callback])
    own = generator_states(CPU)
    draws()
    callback.load_state_dict({"ranks": [own, own]})
    before = generator_states(CPU)
    with pytest.warns(UserWarning, match="of 2 ranks and this run has 1"):
        callback.on_train_start(trainer, TinyModule())
    expected = draws()
    set_generator_states(before, CPU)
    assert draws() == expected
