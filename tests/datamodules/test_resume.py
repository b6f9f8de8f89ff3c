"""Resuming through Lightning's Trainer: the data of a resumed run is that of an uninterrupted one."""

import pytest

from datamodules import DataError
from tests.datamodules.recorder import fit


@pytest.fixture
def run(write_jsonl, cache, texts, tmp_path):
    settings = {"path": write_jsonl(texts[:60]), "cache": str(cache), "checkpoint": str(tmp_path / "a.ckpt")}

    def seen(**more) -> tuple[list, int]:
        recorder, trainer, _ = fit(**settings, **more)
        return recorder.seen, int(trainer.num_training_batches)

    return seen


def test_a_run_resumes_at_any_step_of_any_epoch(run):
    whole, epoch = run(max_steps=300)
    assert 100 < epoch < 140
    for step, workers in ((5, 0), (epoch - 1, 2), (epoch, 0), (epoch + 1, 0), (2 * epoch + 3, 1)):
        before, _ = run(max_steps=step + 3, save_at=step, data={"num_workers": workers})
        after, _ = run(resume=True, max_steps=300)
        assert before == whole[: step + 3] and after == whole[step:]


def test_a_run_resumes_from_an_epoch_s_end_when_epochs_are_counted(run):
    """There Lightning does not hand the loader's own state back."""
    whole, epoch = run(max_epochs=2)
    run(max_epochs=1, save_at=-1)
    after, _ = run(resume=True, max_epochs=2)
    assert after == whole[epoch:]


def test_short_epochs_walk_through_the_data_and_resume(run):
    whole, _ = run(max_steps=30)
    short, _ = run(max_steps=30, limit_train_batches=7, save_at=10, val_check_interval=7)
    after, _ = run(resume=True, max_steps=30, limit_train_batches=7, val_check_interval=7)
    assert short == whole and after == whole[10:]


def test_another_batch_size_goes_on_at_the_same_sample(run):
    whole, _ = run(max_steps=30)
    run(max_steps=11, save_at=10, data={"batch_size": 2})
    after, _ = run(resume=True, max_steps=30)
    assert [row for batch in after for row in batch] == [row for batch in whole for row in batch][20:100]


def test_other_data_is_refused(run):
    run(max_steps=3, save_at=2)
    with pytest.raises(DataError, match="not those of the checkpoint"):
        run(resume=True, max_steps=4, data={"seed": 1})


def test_overfitting_on_a_few_batches_sees_no_other_rows(run):
    seen, epoch = run(max_epochs=3, overfit_batches=2)
    assert epoch == 2 and len(seen) == 6
    assert len({tuple(row) for batch in seen for row in batch}) == 8


def test_loaders_that_are_made_anew_go_on_and_another_fit_begins_at_the_beginning(run, write_jsonl, cache, texts):
    whole, _ = run(max_steps=30)
    assert (
        run(max_steps=30, limit_train_batches=7, reload_dataloaders_every_n_epochs=1, val_check_interval=7)[0] == whole
    )
    _, _, data = fit(write_jsonl(texts[:60]), str(cache), max_steps=5)
    assert data.position == 20
    data.setup("fit")
    assert data.position == 0
