"""A whole run that takes in files as they come, by the command line: it waits, is stopped, goes on, and ends."""

import csv
import shutil
import signal
import time

import pytest
import torch

from datamodules.streaming.watch import STOP
from tests.config_files import config_of, part


@pytest.fixture
def inbox(folder, texts, network):
    (folder / "inbox").mkdir()
    lines = texts.splitlines(keepends=True)
    for number in range(2):
        (folder / f"part-{number}.jsonl").write_text("".join(lines[number * 20 : number * 20 + 20]))
    shutil.copy(folder / "part-0.jsonl", folder / "inbox")
    data = part(
        "WatchedTextDataModule", path="inbox", tokenizer=str(network), seq_len=64, batch_size=4, window_tokens=2000,
        settle=0.1,
    )  # fmt: skip
    model = part("CausalPretraining", backbone={"path": str(network)}, schedule={"kind": "constant", "warmup": 2})
    (folder / "watch.yaml").write_text(config_of(model, data, max_steps=-1, accumulate_grad_batches=2, callbacks=[]))
    return folder / "inbox"


def tokens(folder, name):
    with (folder / name / "metrics.csv").open() as file:
        return max(float(row["tokens"]) for row in csv.DictReader(file) if row["tokens"])


def checkpoints(folder):
    return sorted((folder / "run" / "checkpoints").glob("step=*.ckpt"), key=lambda path: path.stat().st_mtime)


@pytest.mark.slow  # four runs, one of which waits
def test_it_waits_is_stopped_there_goes_on_with_what_came_and_ends(command, run, folder, inbox):
    fit = ("fit", "--config", "watch.yaml", "--trainer.max_epochs=-1")
    process = command(*fit)
    while not checkpoints(folder):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "Taken: part-0.jsonl" in output and "waiting for more" in output and "Traceback" not in output
    (before,) = checkpoints(folder)
    shutil.copy(folder / "part-1.jsonl", inbox)
    (inbox / STOP).touch()
    code, output = run(*fit)
    assert code == 0 and "Taken: part-1.jsonl" in output and "part-0" not in output and "STOP is there" in output, (
        output
    )
    assert (folder / "run" / "model" / "last" / "model.safetensors").exists()
    code, output = run(*fit, "--trainer.default_root_dir=straight", "--trainer.log_every_n_steps=1")
    assert code == 0, output
    assert checkpoints(folder)[-1] != before and tokens(folder, "run") == tokens(folder, "straight") > 0
    assert torch.load(checkpoints(folder)[-1], weights_only=True)["loops"]  # in mid-epoch: the same command goes on
    code, output = run(*fit)
    assert code == 0 and "Taken" not in output and tokens(folder, "run") == tokens(folder, "straight")
