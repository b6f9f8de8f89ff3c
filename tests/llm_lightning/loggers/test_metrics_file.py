import contextlib
import csv
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from llm_lightning.loggers import MetricsFile


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_gathers_what_is_logged_at_its_step(tmp_path):
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"train/loss": 3.5, "tokens": 100.0}, step=1)
    logger.log_metrics({"train/loss": 3.25, "tokens": 200.0}, step=2)
    logger.log_metrics({"val/loss": 3.125}, step=2)
    logger.log_metrics({"train/loss": 3.0, "tokens": 300.0}, step=3)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,tokens,train/loss,val/loss",
        "1,100,3.5,",
        "2,200,3.25,3.125",
        "3,300,3,",
    ]


def test_each_metric_is_on_disk_when_the_call_returns(tmp_path):
    logger = MetricsFile(tmp_path)
    for step in range(5):
        logger.log_metrics({"train/loss": step / 2}, step=step)
        assert rows(logger.path)[-1] == {"step": str(step), "train/loss": f"{step / 2:.9g}"}


def test_float32_values_survive_the_text(tmp_path):
    logger = MetricsFile(tmp_path)
    values = torch.rand(200) * 10 ** torch.randint(-20, 20, (200,)).float()
    for step, value in enumerate(values.tolist()):
        logger.log_metrics({"value": value, "infinite": float("inf"), "missing": float("nan")}, step=step)
    written = torch.tensor([float(row["value"]) for row in rows(logger.path)], dtype=torch.float32)
    assert torch.equal(written, values)
    assert {row["infinite"] for row in rows(logger.path)} == {"inf"}


def test_a_resumed_run_drops_the_rows_it_trains_anew(tmp_path):
    first = MetricsFile(tmp_path)
    for step in range(1, 8):
        first.log_metrics({"train/loss": float(step), "old": 1.0}, step=step)
    resumed = MetricsFile(tmp_path)
    resumed.log_metrics({"train/loss": 50.0, "new": 2.0}, step=5)
    assert [(row["step"], row["train/loss"], row["new"]) for row in rows(resumed.path)] == [
        ("1", "1", ""), ("2", "2", ""), ("3", "3", ""), ("4", "4", ""), ("5", "50", "2"),
    ]  # fmt: skip


@pytest.mark.parametrize("torn", ["4,3.", "4", "", "4,3.25,1,1\n", "\0\0\0"])
def test_a_torn_last_line_is_repaired(tmp_path, torn):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss\n1,3.5\n2,3.25\n" + torn)
    logger = MetricsFile(tmp_path)
    logger.log_metrics({"train/loss": 2.0}, step=9)
    assert path.read_text() == "step,train/loss\n1,3.5\n2,3.25\n9,2\n"


def log_for_ever(folder: Path) -> None:
    logger = MetricsFile(folder)
    for step in range(10**6):
        logger.log_metrics({"train/loss": 1 / (step + 1), f"column {step // 200}": 1.0}, step=step)


def test_a_killed_process_leaves_whole_rows(tmp_path):
    random.seed(0)
    context = multiprocessing.get_context("fork")
    for trial in range(10):
        folder = tmp_path / str(trial)
        process = context.Process(target=log_for_ever, args=(folder,))
        process.start()
        while not (folder / "metrics.csv").exists():
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        MetricsFile(folder).log_metrics({"train/loss": 0.0}, step=10**6)
        *written, last = rows(folder / "metrics.csv")
        assert last["step"] == "1000000"
        assert [int(row["step"]) for row in written] == list(range(len(written)))
        assert all(float(row["train/loss"]) == pytest.approx(1 / (i + 1)) for i, row in enumerate(written))


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.layer(batch).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)

    def train_dataloader(self):
        return DataLoader(torch.rand(400, 1), batch_size=2)

    val_dataloader = train_dataloader


def line_trainer(root: Path, **settings) -> Trainer:
    return Trainer(
        default_root_dir=root, accelerator="cpu", logger=MetricsFile(), max_epochs=-1, val_check_interval=4,
        check_val_every_n_epoch=None, limit_val_batches=2, log_every_n_steps=2, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=1, **settings,
    )  # fmt: skip


def test_a_trainer_writes_into_its_run_folder_and_a_resumed_one_goes_on(tmp_path):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1, filename="{step}")
    line_trainer(tmp_path, max_steps=10, callbacks=[saving]).fit(Line())
    straight = [(row["step"], bool(row["train/loss"]), bool(row["val/loss"])) for row in rows(tmp_path / "metrics.csv")]
    assert straight == [
        ("2", True, False), ("4", True, True), ("6", True, False), ("8", True, True), ("10", True, False),
    ]  # fmt: skip
    kept = (tmp_path / "metrics.csv").read_text().splitlines()[:3]

    resumed = ModelCheckpoint(tmp_path, every_n_train_steps=5, filename="resumed-{step}")
    trainer = line_trainer(tmp_path, max_steps=8, callbacks=[resumed])
    trainer.fit(Line(), ckpt_path=tmp_path / "step=5.ckpt")
    text = (tmp_path / "metrics.csv").read_text().splitlines()
    assert text[:3] == kept
    assert [line.split(",")[0] for line in text[1:]] == ["2", "4", "6", "8"]


def test_a_full_disk_is_a_warning(tmp_path, mount_small_disk):
    small = mount_small_disk(tmp_path / "small", "64k")
    logger = MetricsFile(small)
    logger.log_metrics({"train/loss": 1.0}, step=1)
    with contextlib.suppress(OSError):
        (small / "filler").write_bytes(bytes(100_000))
    with pytest.warns(UserWarning, match="No space left on device"):
        logger.log_metrics({"a new column": 1.0}, step=2)
    (small / "filler").unlink()
    logger.log_metrics({"train/loss": 2.0}, step=3)
    assert [line.split(",")[0] for line in logger.path.read_text().splitlines()] == ["step", "1", "3"]


def test_planted_links_are_not_written_through(tmp_path):
    (tmp_path / "victim").write_text("mine")
    for name in ("metrics.csv", "metrics.csv.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    logger = MetricsFile(tmp_path)
    with pytest.warns(UserWarning, match="is a link"):
        logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.path.unlink()
    logger.log_metrics({"train/loss": 1.0}, step=2)
    assert (tmp_path / "victim").read_text() == "mine" and not logger.path.is_symlink()


def test_a_validation_of_its_own_leaves_the_history_alone(tmp_path):
    line_trainer(tmp_path, max_steps=4, enable_checkpointing=False).fit(Line())
    before = (tmp_path / "metrics.csv").read_text()
    line_trainer(tmp_path, enable_checkpointing=False).validate(Line())
    assert (tmp_path / "metrics.csv").read_text() == before


def test_a_call_costs_less_than_a_fifth_of_a_millisecond(tmp_path):
    logger = MetricsFile(tmp_path)
    metrics = {f"metric/{i}": i / 7 for i in range(12)}
    logger.log_metrics(metrics, step=0)
    fastest = min(_seconds_for_a_hundred(logger, metrics, start) for start in range(1, 1001, 100))
    assert fastest / 100 < 0.2e-3


def _seconds_for_a_hundred(logger: MetricsFile, metrics: dict[str, float], start: int) -> float:
    begin = time.perf_counter()
    for step in range(start, start + 100):
        logger.log_metrics(metrics, step=step)
    return time.perf_counter() - begin


def test_what_is_logged_first_does_not_decide_which_rows_a_resumed_run_keeps(tmp_path):
    first = MetricsFile(tmp_path)
    first.go_on_behind(0)
    for step in range(7):
        first.log_metrics({"train/loss": float(step)}, step=step)
    resumed = MetricsFile(tmp_path)
    resumed.go_on_behind(5)
    resumed.log_metrics({"data/rows": 9.0}, step=0)  # before the trainer has read where the run was
    resumed.log_metrics({"val/loss": 8.0}, step=4)  # a validation that is begun anew
    resumed.log_metrics({"train/loss": 50.0}, step=5)
    resumed.log_metrics({"late": 1.0}, step=2)
    resumed.log_metrics({"train/grad_norm": 2.0}, step=5)
    written = [(row["step"], row["train/loss"], row["data/rows"], row["late"]) for row in rows(resumed.path)]
    assert written == [
        ("1", "0", "9", ""), ("2", "1", "", ""), ("3", "2", "", "1"), ("4", "3", "", ""), ("5", "4", "", ""),
        ("6", "50", "", ""),
    ]  # fmt: skip
    assert rows(resumed.path)[4]["val/loss"] == "8" and rows(resumed.path)[5]["train/grad_norm"] == "2"


def test_metrics_of_a_step_without_a_row_go_where_it_belongs(tmp_path):
    logger = MetricsFile(tmp_path)
    for step in (2, 4, 6):
        logger.log_metrics({"train/loss": float(step)}, step=step)
    logger.log_metrics({"other": 1.0}, step=3)
    logger.log_metrics({"train/loss": 8.0}, step=8)
    assert [(row["step"], row["other"]) for row in rows(logger.path)] == [
        ("2", ""), ("3", "1"), ("4", ""), ("6", ""), ("8", ""),
    ]  # fmt: skip
