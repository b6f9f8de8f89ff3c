"""Resuming through Lightning's Trainer: the data of a resumed run is that of an uninterrupted one."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from datamodules import TextDataModule


class Recorder(pl.LightningModule):
    """The smallest model that trains, and notes what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(300, 4)
        self.seen: list[list[list[int]]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["input_ids"].tolist())
        return self.embedding(batch["input_ids"]).mean()

    def validation_step(self, batch, batch_idx):
        assert batch["input_ids"].shape[1] == 64

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveAt(Callback):
    def __init__(self, path: Path, step: int | None = None, epoch_end: bool = False) -> None:
        self.path, self.step, self.epoch_end = path, step, epoch_end

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer, *_):
        if self.epoch_end:
            trainer.save_checkpoint(self.path)


@pytest.fixture
def run(write_jsonl, cache, texts, tmp_path):
    path = write_jsonl(texts[:60])

    def fit(
        resume: bool = False, step: int | None = None, epoch_end: bool = False, data: dict | None = None, **settings
    ):
        settings = {"max_epochs": -1, "check_val_every_n_epoch": None, "val_check_interval": 50, **settings}
        trainer = pl.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[SaveAt(tmp_path / "a.ckpt", step, epoch_end)],
            **settings,
        )
        options = {"seq_len": 64, "batch_size": 4, "vocab_size": 300, "cache_dir": str(cache), **(data or {})}
        recorder = Recorder()
        checkpoint = str(tmp_path / "a.ckpt") if resume else None
        trainer.fit(
            recorder, TextDataModule(path, **options), ckpt_path=checkpoint, weights_only=True if resume else None
        )
        return recorder.seen, int(trainer.num_training_batches)

    return fit


def test_a_run_resumes_at_any_step_of_any_epoch(run):
    whole, epoch = run(max_steps=300)
    assert 100 < epoch < 140
    for step, workers in ((5, 0), (epoch - 1, 2), (epoch, 0), (epoch + 1, 0), (2 * epoch + 3, 1)):
        before, _ = run(max_steps=step + 3, step=step, data={"num_workers": workers})
        after, _ = run(resume=True, max_steps=300)
        assert before == whole[: step + 3] and after == whole[step:]


def test_a_run_resumes_from_an_epoch_s_end_when_epochs_are_counted(run):
    """There Lightning does not hand the loader's own state back."""
    whole, epoch = run(max_epochs=2)
    run(max_epochs=1, epoch_end=True)
    after, _ = run(resume=True, max_epochs=2)
    assert after == whole[epoch:]


def test_short_epochs_walk_through_the_data_and_resume(run):
    whole, _ = run(max_steps=30)
    short, _ = run(max_steps=30, limit_train_batches=7, step=10, val_check_interval=7)
    after, _ = run(resume=True, max_steps=30, limit_train_batches=7, val_check_interval=7)
    assert short == whole and after == whole[10:]


def test_another_batch_size_goes_on_at_the_same_sample(run):
    whole, _ = run(max_steps=30)
    run(max_steps=11, step=10, data={"batch_size": 2})
    after, _ = run(resume=True, max_steps=30)
    assert [row for batch in after for row in batch][:80] == [row for batch in whole for row in batch][20:100]


def test_other_data_is_warned_about(run):
    run(max_steps=3, step=2)
    with pytest.warns(UserWarning, match="not those of the checkpoint"):
        run(resume=True, max_steps=4, data={"seed": 1})


def test_overfitting_on_a_few_batches_sees_no_other_rows(run):
    seen, epoch = run(max_epochs=3, overfit_batches=2)
    assert epoch == 2 and len(seen) == 6
    assert len({tuple(row) for batch in seen for row in batch}) == 8
