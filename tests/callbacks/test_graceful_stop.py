import os
import signal
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from callbacks import GracefulStop, RunCheckpoint
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_trainer
from tests.callbacks.tiny_run import exit_codes, finish, free_port, recorded, running, wait_until

STEPS, ACCUMULATION = 16, 2
SETTINGS = {"max_steps": STEPS, "accumulate_grad_batches": ACCUMULATION, "val_check_interval": 6}


@pytest.fixture(scope="module")
def uninterrupted(processes, tmp_path_factory):
    root = tmp_path_factory.mktemp("uninterrupted")
    assert finish(processes, root, **SETTINGS) == [0]
    return recorded(root)


@pytest.mark.parametrize(
    ("number", "num_workers"),
    [(signal.SIGINT, 0), (signal.SIGINT, 2), (signal.SIGTERM, 0), (signal.SIGTERM, 2)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_signal_to_the_whole_group_saves_and_the_same_command_goes_on_bit_for_bit(
    processes, uninterrupted, tmp_path, number, num_workers
):
    with running(processes, tmp_path, num_workers=num_workers, step_seconds=0.03, **SETTINGS) as ranks:
        wait_until(lambda: len(recorded(tmp_path)) >= 7)
        os.killpg(ranks[0].pid, number)
        assert exit_codes(ranks) == [3], (tmp_path / "output-0.txt").read_text()
    checkpoint = only(tmp_path / "checkpoints")
    trained = recorded(tmp_path)
    assert 7 <= len(trained) < ACCUMULATION * STEPS
    assert len(trained) % ACCUMULATION == 0, "stopped in mid-accumulation"
    assert checkpoint.name == f"step={len(trained) // ACCUMULATION}.ckpt"
    output = (tmp_path / "output-0.txt").read_text()
    assert str(checkpoint) in output and "Run the same command again to continue." in output

    assert finish(processes, tmp_path, num_workers=num_workers, **SETTINGS) == [0]
    assert recorded(tmp_path) == uninterrupted


def test_a_signal_to_one_of_two_ranks_stops_both_at_the_same_step(processes, tmp_path):
    settings = {"world_size": 2, "max_steps": 14, "val_check_interval": 5}
    straight = tmp_path / "straight"
    assert finish(processes, straight, port=free_port(), **settings) == [0, 0]

    root = tmp_path / "stopped"
    with running(processes, root, port=free_port(), step_seconds=0.03, **settings) as ranks:
        wait_until(lambda: len(recorded(root, rank=1)) >= 4)
        os.kill(ranks[1].pid, signal.SIGTERM)
        assert exit_codes(ranks) == [3, 3], (root / "output-1.txt").read_text()
    assert len(recorded(root, 0)) == len(recorded(root, 1)) < 14
    only(root / "checkpoints")

    assert finish(processes, root, port=free_port(), **settings) == [0, 0]
    for rank in (0, 1):
        assert recorded(root, rank) == recorded(straight, rank)


def test_a_second_ctrl_c_ends_the_process_at_once(processes, tmp_path):
    with running(processes, tmp_path, step_seconds=30, max_steps=4) as ranks:
        wait_until(lambda: len(recorded(tmp_path)) == 1)
        os.kill(ranks[0].pid, signal.SIGINT)
        ranks[0].join(1)
        assert ranks[0].is_alive()
        os.kill(ranks[0].pid, signal.SIGINT)
        assert exit_codes(ranks, timeout_s=10) == [1]
    assert not (tmp_path / "checkpoints").exists()


def test_checkpoints_of_former_stops_do_not_pile_up(processes, tmp_path):
    for target in (3, 6, 9):
        with running(processes, tmp_path, step_seconds=0.03, max_steps=40) as ranks:
            wait_until(lambda target=target: len(recorded(tmp_path)) >= target)
            os.kill(ranks[0].pid, signal.SIGINT)
            assert exit_codes(ranks) == [3]
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert len(names) == 2 and f"step={len(recorded(tmp_path))}.ckpt" in names


class SignalAt(Callback):
    """Raises a signal in this process at the end of a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


class CountValidations(Callback):
    count = 0

    def on_validation_start(self, *_):
        self.count += 1


def test_it_ends_fit_below_min_steps_and_without_another_validation(tmp_path):
    stop, validations = GracefulStop(), CountValidations()
    trainer = tiny_trainer(
        tmp_path, callbacks=[SignalAt(3, signal.SIGTERM), validations, stop], min_steps=8, enable_checkpointing=True
    )
    trainer.fit(TinyModule(), TinyData())
    assert stop.stopped and trainer.global_step == 3
    assert validations.count == 0
    assert trainer.limit_val_batches == 1.0


def test_handlers_are_given_back(tmp_path):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    stop, saving = GracefulStop(signals=["SIGINT", "SIGTERM", "SIGUSR1"]), RunCheckpoint(dirpath=tmp_path / "elsewhere")
    trainer = tiny_trainer(tmp_path, callbacks=[SignalAt(2, signal.SIGUSR1), stop, saving], enable_checkpointing=True)
    trainer.fit(TinyModule(), TinyData())
    assert stop.stopped
    assert (tmp_path / "elsewhere" / "step=2.ckpt").exists()
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_checkpoint_that_was_just_written_is_not_written_again(tmp_path):
    class Counting(Callback):
        count = 0

        def on_save_checkpoint(self, *_):
            self.count += 1

    saves, callbacks = Counting(), [SignalAt(3, signal.SIGTERM), RunCheckpoint(every_n_steps=3), GracefulStop()]
    trainer = tiny_trainer(tmp_path, callbacks=[saves, *callbacks], enable_checkpointing=True)
    trainer.fit(TinyModule(), TinyData())
    assert only(tmp_path / "checkpoints").name == "step=3.ckpt"
    assert saves.count == 1


def test_an_unknown_signal_is_named():
    with pytest.raises(ValueError, match="SIGNAL"):
        GracefulStop(signals=["SIGNAL"])


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


class Waits(TinyData):
    """Waits for data behind the third batch, where a signal comes."""

    is_waiting = False

    def rests(self):
        return False

    def train_dataloader(self):
        for i, batch in enumerate(super().train_dataloader()):
            if i == 3:
                self.is_waiting = True
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                finally:
                    self.is_waiting = False
            yield batch


def test_while_the_data_waits_a_signal_ends_the_process_at_once(tmp_path):
    module = TinyModule()
    with pytest.raises(SystemExit) as stop:
        tiny_trainer(tmp_path, callbacks=[GracefulStop()], enable_checkpointing=True).fit(module, Waits())
    assert stop.value.code == 128 + signal.SIGTERM and len(module.losses) <= 3
