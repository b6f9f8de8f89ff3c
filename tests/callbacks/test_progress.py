import fcntl
import os
import re
import struct
import termios
import threading
from contextlib import contextmanager, redirect_stderr

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import CallbackError, Throughput, TrainingProgress
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_trainer


def fit(root, *callbacks, resumed_from=None, **settings):
    trainer = tiny_trainer(root, callbacks=list(callbacks), enable_progress_bar=True, **settings)
    trainer.fit(TinyModule(), TinyData(), ckpt_path=resumed_from, weights_only=True)
    return trainer


def lines(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]


def test_a_log_file_gets_plain_lines_in_optimizer_steps(tmp_path, capsys):
    fit(tmp_path, Throughput(), TrainingProgress(interval_s=0), accumulate_grad_batches=2, val_check_interval=8)
    written = lines(capsys)
    steps = [line for line in written if "val loss" not in line]
    assert [int(line.split()[1].split("/")[0]) for line in steps] == list(range(1, 11))
    assert re.fullmatch(r"step 9/10, loss \d\.\d+, tokens/s [\d,.]+, \d\d:\d\d left", steps[8])
    (first, second) = [line for line in written if "val loss" in line]
    assert re.fullmatch(r"step 4, val loss \d\.\d+, perplexity [\d.]+", first) and second.startswith("step 8, ")


def test_lines_are_rare_in_a_long_run(tmp_path, capsys):
    fit(tmp_path, TrainingProgress(interval_s=60), limit_val_batches=0)
    assert [line.split(",")[0] for line in lines(capsys)] == ["step 1/10", "step 10/10"]


def test_a_resumed_run_starts_at_its_step(tmp_path, capsys):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=4, filename="{step}")
    settings = {"limit_val_batches": 0, "enable_checkpointing": True}
    fit(tmp_path, TrainingProgress(interval_s=0), saving, max_steps=4, **settings)
    capsys.readouterr()
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=4, filename="{step}")
    fit(
        tmp_path, TrainingProgress(interval_s=0), saving, max_steps=6, resumed_from=tmp_path / "step=4.ckpt", **settings
    )
    assert [line.split(",")[0] for line in lines(capsys)] == ["step 5/6", "step 6/6"]


class Print(Callback):
    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 3:
            pl_module.print("said in between")


@contextmanager
def terminal():
    """A terminal of 30 x 100 characters as stderr; what was written to it is in the yielded bytes afterwards."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    seen = bytearray()
    reading = threading.Thread(target=read_all, args=(master, seen), daemon=True)
    reading.start()
    with os.fdopen(slave, "w", encoding="utf-8") as stream, redirect_stderr(stream):
        yield seen
    reading.join(5)


def read_all(master: int, seen: bytearray) -> None:
    try:
        while part := os.read(master, 4096):
            seen.extend(part)
    except OSError:
        pass  # how Linux says that the other end was closed


def test_a_terminal_gets_one_bar_for_the_whole_fit(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(TrainingProgress, "REFRESH_S", 0.0)
    with terminal() as seen:
        fit(tmp_path, Throughput(), TrainingProgress(), Print(), num_sanity_val_steps=1)
    output = seen.decode()
    assert re.search(r"Training  70%\|.*\| 7/10 \[\d\d:\d\d<\d\d:\d\d, loss \d\.\d+, tokens/s [\d,.]+\]", output)
    assert "Training 100%" in output and "10/10" in output
    assert "Checking validation" in output and re.search(r"Validating\s+0%", output)
    assert re.search(r"step 5, val loss \d\.\d+", output)
    assert "said in between" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_other_stages_show_their_bar(tmp_path, stage):
    module = TinyModule()
    module.test_step = module.validation_step
    module.predict_step = lambda batch: module.model(**batch).logits
    trainer = tiny_trainer(tmp_path, callbacks=[TrainingProgress()], enable_progress_bar=True)
    with terminal() as seen:
        getattr(trainer, stage)(module, TinyData().val_dataloader())
    label = {"validate": "Validating", "test": "Testing", "predict": "Predicting"}[stage]
    assert re.search(rf"{label}\s*100%", seen.decode())


def test_a_negative_interval_is_refused():
    with pytest.raises(CallbackError, match="interval_s"):
        TrainingProgress(interval_s=-1)
