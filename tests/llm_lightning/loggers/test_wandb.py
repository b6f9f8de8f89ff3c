"""Real W&B runs, read back by W&B's own reader of its log files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wandb
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from callbacks import RunCheckpoint, WandbRunId
from llm_lightning.loggers import WandbRun
from tests.wandb_logs import history, read

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """A machine where nobody has logged in to W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # a session that another test began would keep its own settings
    yield
    wandb.finish()
    wandb.teardown()


class Line(LightningModule):
    def __init__(self, hub_token: str = "hf_verysecret", learning_rate: float = 0.01):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.log_dict({"train/loss": loss, "tokens": 100.0 * (self.trainer.global_step + 1)})
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.layer(batch).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.learning_rate)

    def train_dataloader(self):
        return DataLoader(torch.rand(40, 1), batch_size=2)

    val_dataloader = train_dataloader


def fit(root: Path, logger: WandbRun, max_steps: int = 4, resumed_from: Path | None = None) -> Trainer:
    saving = RunCheckpoint(every_n_steps=max_steps, dirpath=root)
    trainer = Trainer(
        default_root_dir=root, accelerator="cpu", logger=logger, max_epochs=-1, max_steps=max_steps,
        val_check_interval=2, check_val_every_n_epoch=None, limit_val_batches=1, num_sanity_val_steps=0,
        log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False, callbacks=[WandbRunId(), saving],
    )  # fmt: skip
    trainer.fit(Line(), ckpt_path=resumed_from, weights_only=True)
    wandb.finish()
    return trainer


def runs(root: Path) -> list[Path]:
    return sorted((root / "wandb").glob("*run-*-*"))


def run_id(run: Path) -> str:
    (log,) = run.glob("run-*.wandb")
    return log.stem.removeprefix("run-")


def test_without_a_key_it_logs_offline_in_the_run_folder_with_tokens_as_the_x_axis(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["llm-lightning", "fit", "--data.api_key", "topsecret"])
    with pytest.warns(UserWarning, match="No W&B API key") as caught:
        fit(tmp_path, WandbRun(project="p", name="n"))
    assert sum("No W&B API key" in str(warning.message) for warning in caught) == 1
    (run,) = runs(tmp_path)
    log = read(run)

    items = history(log)
    assert [item["tokens"] for item in items] == [100, 200, 200, 300, 400, 400]
    assert sum("val/loss" in item for item in items) == 2
    (axis,) = [record["metric"] for record in log if record.get("metric", {}).get("glob_name") == "*"]
    assert axis["step_metric"] == "tokens" and axis["options"]["step_sync"]

    (begun,) = [record["run"] for record in log if record["type"] == "run"]
    assert begun["project"] == "p" and begun["display_name"] == "n"
    config = begun["config"]["update"]
    assert config["hub_token"] == "***" and config["learning_rate"] == 0.01
    text = json.dumps(log)
    assert "verysecret" not in text and "topsecret" not in text
    assert "--data.api_key" in text


def test_a_resumed_run_is_the_same_run(tmp_path):
    fit(tmp_path, WandbRun())
    checkpoint = tmp_path / "step=4.ckpt"
    fit(tmp_path, WandbRun(), max_steps=6, resumed_from=checkpoint)
    first, second = map(run_id, runs(tmp_path))
    assert first == second == torch.load(checkpoint, weights_only=True)["callbacks"]["WandbRunId"]["id"]

    elsewhere = tmp_path / "elsewhere"
    fit(elsewhere, WandbRun(), max_steps=6, resumed_from=checkpoint)
    (run,) = runs(elsewhere)
    assert run_id(run) == first

    fit(tmp_path / "fresh", WandbRun())
    (run,) = runs(tmp_path / "fresh")
    assert run_id(run) != first


def test_a_server_that_does_not_answer_costs_a_warning_and_the_run_is_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match="W&B does not answer"):
        trainer = fit(tmp_path, WandbRun(init_timeout_s=2, finish_timeout_s=1))
    assert trainer.global_step == 4
    offline = [run for run in runs(tmp_path) if run.name.startswith("offline")]
    assert len(history(read(offline[0]))) == 6


WITH_A_DYING_SERVICE = """
import os, signal, sys, time, psutil
from llm_lightning.loggers import WandbRun

assert "wandb" not in sys.modules, "wandb is slow to import, and was imported before it was needed"
logger = WandbRun(save_dir=sys.argv[1])
logger.log_metrics({"tokens": 0, "train/loss": 1.0}, step=0)
for process in psutil.Process().children(recursive=True):
    os.kill(process.pid, signal.SIGKILL)
for step in range(1, 1000):
    logger.log_metrics({"tokens": step, "train/loss": 1.0}, step=step)
    time.sleep(0.001)
logger.log_hyperparams({"learning_rate": 1})
logger.experiment.log({"tokens": 1000})
logger.finalize("success")
print("trained to the end")
"""


def test_a_service_that_dies_costs_a_warning(tmp_path):
    command = [sys.executable, "-c", WITH_A_DYING_SERVICE, str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "trained to the end" in finished.stdout
    assert finished.stderr.count("W&B failed, training goes on without it") == 1


def test_under_a_service_of_another_folder_the_log_lies_in_the_run_folder(tmp_path, monkeypatch):
    """As a command has it that another one started: W&B's service resolves paths in its own working directory."""
    (tmp_path / "started").mkdir()
    environment = os.environ | {"WANDB_MODE": "offline"}
    line = "import wandb, os; wandb.setup(); print(os.environ['WANDB_SERVICE'], flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", line], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as owner:
        monkeypatch.setenv("WANDB_SERVICE", owner.stdout.readline().strip())
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.chdir(tmp_path / "started")
        fit(Path("run"), WandbRun(project="p"))
        owner.stdin.close()
    (run,) = runs(tmp_path / "started" / "run")
    assert len(history(read(run))) > 3


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="W&B failed"):
        trainer = fit(tmp_path, WandbRun(save_dir=tmp_path / "file"))
    assert trainer.global_step == 4
