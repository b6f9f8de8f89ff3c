import os
import signal
import subprocess
import sys

import matplotlib.image
import pytest
from lightning.pytorch import Callback

from callbacks import Curves, GracefulStop, ModelFolder, RunSummary, Throughput
from callbacks.monitoring.curves import draw_curves, read_metrics
from llm_lightning.loggers import MetricsFile
from tests.callbacks.tiny_llama import TinyData, TinyModule, tiny_trainer


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class TinyPolicy(TinyModule):
    """Its rewards are the ones that a test asks for."""

    monitor = ("val/reward", "max")

    def training_step(self, batch, batch_idx):
        self.log_dict({"train/reward": 0.125, "train/kl": 7.8912})
        return self.model(**batch).loss

    def validation_step(self, batch, batch_idx):
        reward = (float("nan"), -3.0, -0.5, -1234.0)[self.trainer.global_step - 1]
        self.log_dict({"val/reward": reward, "val/reward/correct": reward, "val/reward/short": 0.25})


def fit(root, *callbacks, **settings):
    trainer = tiny_trainer(root, callbacks=list(callbacks), logger=MetricsFile(), **settings)
    trainer.fit(TinyModule(), TinyData())
    return trainer


def test_the_summary_says_what_was_reached_and_what_comes_next(tmp_path, capsys):
    summary = RunSummary(next_command="llm-lightning fit --config configs/sft.yaml")
    trainer = fit(tmp_path, Throughput(), ModelFolder(), Curves(), summary)
    printed = {line[:14].strip(): line[16:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    metrics = trainer.callback_metrics
    assert printed["steps"] == "10" and printed["tokens"] == "320"
    assert printed["train loss"] == f"{float(metrics['train/loss']):.4g}"
    assert printed["val loss"].endswith(f"{float(metrics['val/loss']):.4g} (last)")
    assert "tokens/s" in printed["speed"] and "MFU" in printed["speed"]
    assert printed["model"] == str(tmp_path / "model" / "last")
    assert printed["best model"] == str(tmp_path / "model" / "best")
    assert printed["curves"] == str(tmp_path / "curves.png")
    assert printed["next"] == "llm-lightning fit --config configs/sft.yaml"


def test_the_best_validation_is_kept_over_a_resume(tmp_path):
    summary = RunSummary()
    fit(tmp_path, summary)
    state = summary.state_dict()
    assert state["best"]["step"] in (5, 10)
    resumed = RunSummary()
    resumed.load_state_dict({"best": {"val/loss": 0.5, "val/perplexity": 1.65, "step": 3}})
    trainer = fit(tmp_path / "resumed", resumed)
    assert "0.5 (best, step 3)" in resumed.text(trainer)
    assert "1.65" in resumed.text(trainer)


def test_the_best_validation_is_the_one_that_the_module_goes_by(tmp_path):
    summary = RunSummary()
    trainer = tiny_trainer(tmp_path, callbacks=[summary], max_steps=4, val_check_interval=1)
    trainer.fit(TinyPolicy(), TinyData())
    printed = {line[:14].strip(): line[16:] for line in summary.text(trainer).splitlines()}
    assert "min" in printed.pop("time")
    assert printed == {
        "steps": "4", "train reward": "0.125", "val reward": "-0.5 (best, step 3), -1,234 (last)",
        "rewards": "correct -0.5, short 0.25", "KL": "7.891 nats a completion",
    }  # fmt: skip
    untried = tiny_trainer(tmp_path, max_steps=1)
    untried.fit(TinyPolicy(), TinyData())
    assert "val reward" not in RunSummary().text(untried)


def test_both_speak_after_a_graceful_stop(tmp_path, capsys):
    fit(tmp_path, StopAt(7), Curves(), RunSummary(), GracefulStop(), enable_checkpointing=True)
    output = capsys.readouterr().out
    assert "Stopped at step 7" in output and "steps  7\n" in output
    assert (tmp_path / "curves.png").exists()


def test_curves_are_drawn_from_what_there_is(tmp_path):
    fit(tmp_path, Throughput(), Curves())
    picture = matplotlib.image.imread(tmp_path / "curves.png")
    assert picture.shape[:2] == (690, 1500)
    assert picture[..., :3].std() > 0.05, "the picture is blank"


@pytest.mark.parametrize(
    "text",
    [
        "step,train/loss\n1,3.5\n2,nan\n3,3.0\n",
        "step,tokens,train/loss,val/loss\n1,10,3.5,\n2,,,3.25\n3,30,2",
        "step,val/loss\n1,3.5\n",
        "step,train/lr\n1,0.001\n",
        "step\n",
        "",
    ],
)
def test_curves_take_short_torn_and_strange_files(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


def test_a_torn_last_line_is_not_read(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,3.5\n2,3.2")
    assert read_metrics(tmp_path / "metrics.csv") == [{"step": 1.0, "train/loss": 3.5}]


def test_a_run_without_metrics_file_draws_nothing(tmp_path):
    trainer = tiny_trainer(tmp_path, callbacks=[Curves()], max_steps=2)
    trainer.fit(TinyModule(), TinyData())
    assert not (tmp_path / "curves.png").exists()


def test_importing_the_callbacks_imports_nothing_slow_of_its_own():
    code = (
        "import sys, lightning.pytorch; before = set(sys.modules); import callbacks;"
        "slow = {'transformers', 'wandb', 'matplotlib.figure', 'peft', 'datasets'};"
        "print(*(slow & (set(sys.modules) - before)))"
    )
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert imported.strip() == ""
