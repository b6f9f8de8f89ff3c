import csv
from typing import Any

import pytest
from lightning.pytorch.callbacks import Checkpoint

from callbacks import RunCheckpoint
from llm_lightning.loggers.metrics_file import MetricsFile
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_trainer


class Fails(Checkpoint):
    """At the moment that is the worst for a checkpoint: when it is written, and Lightning has not logged its step."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("killed")


def test_no_step_before_a_checkpoint_is_missing_in_the_metrics(tmp_path):
    metrics = MetricsFile(tmp_path)
    trainer = tiny_trainer(tmp_path, logger=metrics, callbacks=[RunCheckpoint(3), Fails()], enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="killed"):
        trainer.fit(TinyModule(), TinyData())
    assert (tmp_path / "checkpoints" / "step=3.ckpt").is_file()
    with metrics.path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert all(float(row["train/loss"]) > 0 for row in rows)


def test_logging_a_checkpoints_step_twice_leaves_one_row(tmp_path):
    def steps(name: str, every_n_steps: int) -> list[str]:
        metrics = MetricsFile(tmp_path / name)
        checkpoint = RunCheckpoint(every_n_steps, dirpath=tmp_path / name)
        settings = {"logger": metrics, "callbacks": [checkpoint], "enable_checkpointing": True, "max_steps": 6}
        tiny_trainer(tmp_path / name, **settings).fit(TinyModule(), TinyData())
        return [row.split(",")[0] for row in metrics.path.read_text().splitlines()]

    assert steps("often", 1) == steps("seldom", 6)


class Comes(TinyData):
    """Data that come in parts of three steps."""

    is_waiting = False

    def rests(self) -> bool:
        return self.trainer.global_step % 3 == 0


def test_where_the_data_will_wait_it_saves(tmp_path):
    trainer = tiny_trainer(tmp_path, callbacks=[RunCheckpoint(100, keep=9)], enable_checkpointing=True)
    trainer.fit(TinyModule(), Comes())
    found = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert found == {"step=3.ckpt", "step=6.ckpt", "step=9.ckpt", "step=10.ckpt"}


def test_two_of_them_keep_the_newest_and_an_archive(tmp_path):
    archive = RunCheckpoint(4, keep=9, dirpath=tmp_path / "archive")
    settings = {"callbacks": [RunCheckpoint(3), archive], "enable_checkpointing": True}
    tiny_trainer(tmp_path, **settings).fit(TinyModule(), TinyData())
    names = {name: {path.name for path in (tmp_path / name).iterdir()} for name in ("checkpoints", "archive")}
    assert names["checkpoints"] == {"step=9.ckpt", "step=10.ckpt"}
    assert names["archive"] == {"step=4.ckpt", "step=8.ckpt", "step=10.ckpt"}
