"""The command line with a judge for a reward: its overlay, what a run leaves, and a judge that is not believed."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from llm_lightning.__main__ import main
from tests.chat_server import ChatServer
from tests.llm_lightning.rewards.judge.judges import by_rule, quality, write_pairs

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def server():
    with ChatServer().running() as running:
        yield running


@pytest.fixture
def small(tmp_path, cache, network, server, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(cache))
    rows = [{"prompt": f"What is {number}?"} for number in range(40)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_pairs(Path("pairs.jsonl"))
    shutil.copytree(network, "network")
    overlay = (CONFIGS / "rewards" / "judge.yaml").read_text()
    Path("judge.yaml").write_text(re.sub(r"http://[^\"]*", server.url, overlay))


def fit(*more):
    return main(
        [
            "fit", f"--config={CONFIGS}/grpo.yaml", "--config=judge.yaml", "--model.backbone.path=network",
            "--data.path=prompts.jsonl", "--data.batch_size=2", "--data.max_prompt_tokens=64",
            "--model.rollout.num_samples=2", "--trainer.max_steps=2",
            "--model.rollout.sampling.max_new_tokens=6", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=1",
            "--trainer.default_root_dir=run", *more,
        ]
    )  # fmt: skip


def test_the_overlay_measures_its_judge_and_trains_on_it(small, server, capfd):
    server.answer = by_rule(quality)
    assert fit() == 0, capfd.readouterr().err
    assert "Judge judge: right in 100.0% of 40 labelled pairs" in capfd.readouterr().out
    report = json.loads(Path("run/judges/judge/agreement.json").read_text())
    assert report["accuracy"] == 1 and report["calls"] == 80 and report["position"]["is_sure"] is False
    rows = list(csv.DictReader(Path("run/metrics.csv").read_text().splitlines()))
    assert any(float(row["reward/judge/inconsistent"] or "nan") == 0 for row in rows), rows
    kept = Path("run/judges/judge/answers-0.jsonl").read_text().splitlines()
    assert len(kept) == len(server.calls) == len({json.dumps(call) for call in server.calls}) > 80


def test_a_judge_that_agrees_too_little_ends_the_run_before_any_step(small, server, capfd):
    server.answer = lambda body: "Verdict: B"
    assert fit() == 2
    error = capfd.readouterr().err
    assert "Judge.agreement.least=0.6: judge is right in 50.0%" in error and "shown first -1.00" in error
    assert not list(Path("run").glob("checkpoints/*.ckpt")) and len(server.calls) == 80
