"""What a teacher finds likely, on disk: the same as the teacher, killed and gone on, and damaged."""

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_lightning.__main__ import main
from tests.end_to_end.test_distillation import logged, taught  # noqa: F401 (a fixture)
from tests.end_to_end.test_resume import weights

CACHED = ("--model.teacher_logprobs=cached", "--model.backbone.dropout=0")
WHOLE = "--model.top_k=320"


@pytest.fixture
def here(taught, tmp_path, monkeypatch):  # noqa: F811
    """In the folder, with a cache of its own."""
    monkeypatch.chdir(taught)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(tmp_path / "own-cache"))
    return taught


def fit(root, *args):
    return main(["fit", "--config", "tiny.yaml", f"--trainer.default_root_dir={root}", *args])


@pytest.mark.parametrize("kind", ["forward_kl", pytest.param("reverse_kl", marks=pytest.mark.slow)])
def test_all_tokens_of_the_cache_are_the_live_teacher(here, capfd, kind):
    loss = f"--model.objective.kind={kind}", "--model.objective.temperature=1.5"
    assert fit("live", *loss, "--model.backbone.dropout=0") == 0
    assert fit("cached", *loss, *CACHED, WHOLE) == 0
    said = capfd.readouterr().out
    assert "Teacher: computing what it finds likely of" in said and "1920 bytes a trained token" in said
    ours = weights(here / "cached")
    for name in ("train/divergence", "val/divergence", "train/loss"):
        assert logged(here / "cached", name) == pytest.approx(logged(here / "live", name), rel=1e-3, abs=1e-5)

    shutil.move("taught", "elsewhere")  # it is looked at, and not run
    moved = "--model.teacher.path=elsewhere/model/last"
    assert fit("again", *loss, *CACHED, WHOLE, moved) == 0
    said = capfd.readouterr().out
    assert "Teacher: what it finds likely, from" in said and "computing" not in said
    again = weights(here / "again")
    assert all(torch.equal(again[name], ours[name]) for name in ours)


def test_few_tokens_are_enough_and_a_damaged_row_is_noticed(here, tmp_path, capfd):
    assert fit("cached", *CACHED, "--model.top_k=8", "--model.objective.kind=jensen_shannon") == 0
    divergences = logged(here / "cached", "val/divergence")
    assert divergences[-1] < divergences[0]
    (file,) = (tmp_path / "own-cache" / "teacher").glob("*/train.logprobs")
    assert fit("other", *CACHED, "--model.top_k=8", "--model.objective.temperature=2", "--trainer.max_steps=2") == 0
    assert len(list(file.parent.parent.iterdir())) == 2
    values = np.memmap(file, np.float32, "r+", shape=(file.stat().st_size // 4 // 8, 8))
    values[values[:, 0] != 0] *= 1.5
    values.flush()
    capfd.readouterr()
    assert fit("damaged", *CACHED, "--model.top_k=8", "--model.objective.kind=jensen_shannon") == 2
    error = capfd.readouterr().err
    assert "is damaged: delete that folder" in error and "Traceback" not in error, error


@pytest.mark.parametrize("name", ["fit", pytest.param("distill-cache", marks=pytest.mark.slow)])
def test_a_killed_build_goes_on(command, run, here, tmp_path, name):
    env = {"LLM_LIGHTNING_CACHE": str(tmp_path / "own-cache")}
    args = (name, "--config", "tiny.yaml", *CACHED, "--data.batch_size=1", "--trainer.default_root_dir")
    process = command(*args, "run", env=env)
    found = []
    while process.poll() is None and not found:
        files = list((tmp_path / "own-cache" / "teacher").glob("*/train.checksums"))
        found = [file for file in files if np.fromfile(file, np.uint32).any()]
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = np.fromfile(found[0], np.uint32)
    code, output = run(*args, "run", env=env)
    assert code == 0, output
    if not before.all():  # else it was done before the signal came
        assert f"of {(before == 0).sum() + 1:,} rows" in output or "computing what it finds likely" in output, output
    after = np.fromfile(found[0], np.uint32)
    assert after.all() and (after[before > 0] == before[before > 0]).all()


def test_the_command_fills_the_cache_that_a_fit_finds(here, capfd):
    args = ["--config", "tiny.yaml", *CACHED, "--model.top_k=8"]
    assert main(["distill-cache", *args]) == 0
    said = capfd.readouterr()
    place = said.out.split("Teacher: what it finds likely, from ")[1].split(" (")[0]
    files = list(Path(place).iterdir())
    room = sum(file.stat().st_blocks for file in files) * 512
    assert f"({room / 1e6:,.1f} MB, 48 bytes a trained token)" in said.out and len(files) == 6
    assert "Teacher: 100%" in said.err and not (here / "run").exists()

    assert main(["distill-cache", *args]) == 0
    assert "computing" not in capfd.readouterr().out
    assert fit("cached", *CACHED, "--model.top_k=8", "--trainer.max_steps=2") == 0
    said = capfd.readouterr().out
    assert "computing" not in said and f"Teacher: what it finds likely, from {place}" in said


MISTAKES_OF_THE_COMMAND = [
    ("tiny.yaml", ["--model.teacher_logprobs=live"], "model.teacher_logprobs=live keeps nothing of the teacher"),
    ("tiny.yaml", ["--model.top_k=0"], "model.top_k=0 must be at least 1"),
    ("teacher.yaml", [], "SupervisedFinetuning has no teacher; use --model Distillation"),
]


def test_mistakes_of_the_command(here, capfd):
    for config, settings, words in MISTAKES_OF_THE_COMMAND:
        cached = CACHED if config == "tiny.yaml" else ()
        assert main(["distill-cache", "--config", config, *cached, *settings]) == 2, settings
        error = capfd.readouterr().err
        assert words in error and "Traceback" not in error, error


@pytest.mark.parametrize(
    ("settings", "words"),
    [(["--model.top_k=321"], "model.top_k=321 is above the 320 tokens"), (["--model.top_k=0"], "must be at least 1")],
)
def test_mistakes(here, capfd, settings, words):
    assert fit("run", *CACHED, *settings) == 2
    assert words in capfd.readouterr().err
