import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForCausalLM

from callbacks import CallbackError, GracefulStop, ModelFolder
from callbacks.artifacts.model_folder import _recover, swap_in
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_trainer
from tests.callbacks.tiny_run import ever_better_folders, exit_codes, recorded, running, wait_until


def weights(network):
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def fit(root: Path, folder: ModelFolder, *others, **settings):
    module = TinyModule()
    trainer = tiny_trainer(root, callbacks=[folder, *others], **settings)
    trainer.fit(module, TinyData())
    return module, trainer


def test_last_is_what_training_ended_with(tmp_path):
    module, _ = fit(tmp_path, ModelFolder())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model" / "last")
    assert torch.equal(weights(loaded), weights(module.model))


class Growing(TinyModule):
    """Its validation metric is the step."""

    def __init__(self):
        super().__init__()
        self.by_step = {}

    def validation_step(self, batch, batch_idx):
        self.by_step[self.trainer.global_step] = weights(self.model).clone()
        self.log("grows", float(self.trainer.global_step))


@pytest.mark.parametrize(("mode", "best_step"), [("min", 2), ("max", 6)])
def test_best_is_of_the_step_that_validated_best(tmp_path, mode, best_step):
    folder, module = ModelFolder(monitor="grows", mode=mode), Growing()
    trainer = tiny_trainer(tmp_path, callbacks=[folder], max_steps=6, val_check_interval=2)
    trainer.fit(module, TinyData())
    assert folder.best_value == best_step
    loaded = AutoModelForCausalLM.from_pretrained(folder.best)
    assert torch.equal(weights(loaded), module.by_step[best_step])


def test_a_resumed_run_keeps_the_best_of_the_run_before(tmp_path):
    first = Growing()
    for module, max_steps, resumed_from in ((first, 4, None), (Growing(), 6, tmp_path / "step=4.ckpt")):
        saving = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
        folder = ModelFolder(monitor="grows")
        callbacks = [folder, saving]
        trainer = tiny_trainer(
            tmp_path, callbacks=callbacks, max_steps=max_steps, val_check_interval=2, enable_checkpointing=True
        )
        trainer.fit(module, TinyData(), ckpt_path=resumed_from, weights_only=True)
    assert list(module.by_step) == [6]
    assert folder.best_value == 2
    loaded = AutoModelForCausalLM.from_pretrained(folder.best)
    assert torch.equal(weights(loaded), first.by_step[2])


def test_a_finished_run_that_lost_its_last_folder_writes_it_when_started_again(tmp_path):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=10, filename="{step}")
    module, _ = fit(tmp_path, ModelFolder(), saving, enable_checkpointing=True)
    shutil.rmtree(tmp_path / "model" / "last")
    again = TinyModule()
    trainer = tiny_trainer(tmp_path, callbacks=[ModelFolder()])
    trainer.fit(again, TinyData(), ckpt_path=tmp_path / "step=10.ckpt", weights_only=True)
    assert again.losses == []
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model" / "last")
    assert torch.equal(weights(loaded), weights(module.model))


def test_a_graceful_stop_leaves_its_model(tmp_path):
    class Stop(GracefulStop):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            os.kill(os.getpid(), signal.SIGTERM)

    module, trainer = fit(tmp_path, ModelFolder(), Stop(), enable_checkpointing=True)
    assert trainer.global_step == 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model" / "last")
    assert torch.equal(weights(loaded), weights(module.model))


def test_killed_at_any_moment_a_whole_folder_is_there(processes, tmp_path):
    random.seed(0)
    best = tmp_path / "model" / "best"
    for _ in range(12):
        settings = {"max_steps": 10_000, "val_check_interval": 1, "limit_val_batches": 1}
        seen = len(recorded(tmp_path))
        with running(processes, tmp_path, callbacks=ever_better_folders, **settings) as ranks:
            wait_until(lambda seen=seen: best.exists() and len(recorded(tmp_path)) >= min(seen, 2))
            time.sleep(random.uniform(0, 0.05))
            os.kill(ranks[0].pid, signal.SIGKILL)
            assert exit_codes(ranks) == [-signal.SIGKILL]
        _recover(best)
        assert weights(AutoModelForCausalLM.from_pretrained(best)).isfinite().all()
        assert [path.name for path in best.parent.iterdir()] == ["best"]


def test_a_kill_between_the_two_renames_leaves_the_former_folder(tmp_path):
    best = tmp_path / "best"
    for name in ("best.former", "best.tmp-7"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "from").write_text(name)
    _recover(best)
    assert (best / "from").read_text() == "best.former"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_swapping_replaces_the_folder_and_leaves_nothing_beside_it(tmp_path):
    best = tmp_path / "best"
    for name in ("first", "second"):
        (tmp_path / "fresh").mkdir()
        (tmp_path / "fresh" / name).touch()
        swap_in(tmp_path / "fresh", best)
        assert [path.name for path in best.iterdir()] == [name]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_full_disk_is_a_warning_and_the_former_best_stays(mount_small_disk, tmp_path):
    small_disk = mount_small_disk(tmp_path / "disk", "400k")

    class Filling(Growing):
        def on_validation_end(self):
            if self.trainer.global_step == 2:
                room = shutil.disk_usage(small_disk).free - 50_000
                (small_disk / "ballast").write_bytes(bytes(room))

    folder, module = ModelFolder(monitor="grows", mode="max", dirpath=small_disk), Filling()
    trainer = tiny_trainer(tmp_path, callbacks=[folder], max_steps=4, val_check_interval=2)
    with pytest.warns(UserWarning, match="disk is full"):
        trainer.fit(module, TinyData())
    assert trainer.global_step == 4
    assert folder.best_value == 2
    loaded = AutoModelForCausalLM.from_pretrained(folder.best)
    assert torch.equal(weights(loaded), module.by_step[2])
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "best"]


def test_nothing_is_left_by_a_rehearsal_or_a_sanity_check(tmp_path):
    fit(tmp_path / "rehearsal", ModelFolder(), fast_dev_run=True)
    assert not (tmp_path / "rehearsal" / "model").exists()
    folder = ModelFolder()
    fit(tmp_path / "checked", folder, num_sanity_val_steps=2, max_steps=2)
    assert folder.best_value is None and not folder.best.exists()


def test_a_metric_that_is_not_logged_is_named_with_those_that_are(tmp_path):
    with pytest.raises(CallbackError, match=r"'val/los'.*'val/loss'"):
        fit(tmp_path, ModelFolder(monitor="val/los"))
