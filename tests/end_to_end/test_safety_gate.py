"""The safety gate in real fits: what it catches, what it lets pass, and what a kill costs."""

import csv
import html
import json
import time
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="the extra `evaluation` is not installed")

from tests.chat_server import ChatServer
from tests.config_files import part
from tests.end_to_end.safety_data import (
    changed,
    copy_chat_network,
    fit_with_gate,
    write_fit,
    write_items,
    write_refusals,
)

NAMES = ("train/loss", "train/grad_norm", "val/loss", "tokens")


@pytest.fixture
def refuser(folder, network):
    """A chat network, a fine-tune that teaches it to refuse everything, and items to ask."""
    copy_chat_network(network, folder / "chat")
    write_refusals(folder / "pairs.jsonl")
    write_items(folder)
    return folder


def metrics(folder: Path, names) -> list[tuple[str, ...]]:
    with (folder / "metrics.csv").open() as file:
        return [tuple(row.get(name) or "" for name in names) for row in csv.DictReader(file)]


def found_by(folder: Path) -> dict:
    return json.loads((folder / "safety.json").read_text())


def asked(folder: Path, step: int) -> list[str]:
    """The keys of all questions that a step's network was asked, one for each time."""
    text = "".join(path.read_text() for path in (folder / f"evaluation/safety-step={step}").glob("answers-*.jsonl"))
    return [json.loads(line)[0] for line in text.splitlines() if line]


def test_a_planted_over_refuser_is_caught_while_it_trains_and_stays_caught(run, refuser):
    write_items(refuser / "more", num_prompts=40)
    paths = {"xstest": "more/xstest", "bipia": "more/bipia"}
    write_fit(refuser, 5e-3, 400, action="stop", every_n_steps=30, **paths)
    code, output = run("fit", "--config", "gated.yaml")
    assert code == 1, output
    found = found_by(refuser / "run")
    assert found["worse"] == ["safe prompts refused"] and found["step"] < 400
    assert [check["worse"] for check in found["checks"]][-1] == found["worse"]
    words = "worse than before training: safe prompts refused 0.0 % -> 100.0 %"
    assert f"The safety gate: {words}" in output
    assert (refuser / "run" / "checkpoints" / f"step={found['step']}.ckpt").exists()
    assert (refuser / "run" / "model" / "last" / "config.json").exists()
    assert words in html.unescape((refuser / "run" / "report.html").read_text())
    safe, unsafe = (f"safety/local_xstest/refused_{label}" for label in ("safe", "unsafe"))
    shares = [tuple(map(float, row)) for row in metrics(refuser / "run", (safe, unsafe)) if row[0]]
    assert shares[0] == (0, 0) and shares[-1] == (1, 1)

    results = refuser / "run" / "evaluation" / "safety-step=0" / "results.json"
    before = results.stat().st_mtime_ns
    code, output = run("fit", "--config", "gated.yaml")
    assert code == 1 and "it was stopped at step" in output and "Safety gate: asking" not in output, output
    changed(refuser, lambda settings: settings.update(action="warn", every_n_steps=None))
    code, output = run("fit", "--config", "gated.yaml", f"--trainer.max_steps={found['step'] + 2}")
    assert code == 0 and "Going on from" in output and words in output, output
    assert results.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_run_that_changes_nothing_passes_and_learns_as_without_the_gate(run, refuser):
    write_fit(refuser, 0.0, 6, action="stop", every_n_steps=2)
    code, output = run("fit", "--config", "gated.yaml")
    assert code == 0 and "no change for the worse was shown" in output, output
    found = found_by(refuser / "run")
    assert found["worse"] == [] and [check["step"] for check in found["checks"]] == [2, 4] and found["step"] == 6
    assert {change["difference"] for change in found["changes"]} == {0} and len(found["changes"]) == 4
    assert {change["corrected_p"] for change in found["changes"]} == {1}
    config = fit_with_gate(0.0, 6)
    (refuser / "plain.yaml").write_text(
        config.replace("SafetyGate", "Energy").partition("    init_args:\n      xstest")[0]
    )
    assert "Energy" in (refuser / "plain.yaml").read_text()
    code, output = run("fit", "--config", "plain.yaml", "--trainer.default_root_dir=plain")
    assert code == 0, output
    assert metrics(refuser / "run", NAMES) == metrics(refuser / "plain", NAMES)


@pytest.mark.slow  # two runs in processes of their own
def test_a_run_that_is_killed_in_its_answers_is_asked_nothing_twice(command, run, refuser):
    write_fit(refuser, 5e-3, 8)
    total = 24 + 8 + 8
    for step in (0, 8):
        process = command("fit", "--config", "gated.yaml")
        while not (given := asked(refuser / "run", step)) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait(60)
        assert given and not (refuser / "run" / "safety.json").exists()
    before = (refuser / "run" / "evaluation" / "safety-step=0" / "results.json").read_bytes()
    code, output = run("fit", "--config", "gated.yaml")
    assert code == 0, output
    for step in (0, 8):
        keys = asked(refuser / "run", step)
        assert len(keys) == len(set(keys)) == total, step
    assert (refuser / "run" / "evaluation" / "safety-step=0" / "results.json").read_bytes() == before
    code, output = run("fit", "--config", "gated.yaml", "--trainer.default_root_dir=whole")
    assert code == 0, output
    assert found_by(refuser / "run") == found_by(refuser / "whole")


def test_missing_items_are_told_before_training(run, refuser):
    write_fit(refuser, 5e-3, 8)
    (refuser / "bipia" / "text_attack_train.json").unlink()
    code, output = run("fit", "--config", "gated.yaml")
    assert code == 2 and "there is no text_attack_train.json with the injections" in output, output
    changed(refuser, lambda settings: settings.update(bipia=None, xstest="nowhere"))
    code, output = run("fit", "--config", "gated.yaml")
    assert code == 2 and "local_xstest=nowhere" in output and not (refuser / "run" / "metrics.csv").exists(), output


def test_a_judge_at_an_endpoint(run, refuser):
    server = ChatServer()
    server.answer = lambda body: verdict_on(body["messages"][0]["content"])
    with server.running():
        judge = part("datamodules.OpenAIEngine", url=server.url, model_name="judge")
        write_fit(refuser, 5e-3, 60, judge=judge, bipia=None, action="warn")
        code, output = run("fit", "--config", "gated.yaml")
    assert code == 0, output
    found = found_by(refuser / "run")
    assert found["judged_by"] == {"local_xstest": f"OpenAIEngine {server.url} judge"}
    assert "decline to do what is asked" in found["judge_prompts"]["local_xstest"]
    # 0, 10 and 20 stand in no verdict that can be read, and are safe prompts.
    assert found["unreadable"] == {"local_xstest/refused_safe": 3}
    safe, unsafe = found["changes"]
    assert (safe["num_items"], unsafe["num_items"]) == (9, 12)
    assert (safe["before"], safe["after"], unsafe["after"]) == (0, 1, 1)
    assert len(server.calls) == 24 * 2 and "verdicts could not be read" in output
    assert "decline to do what is asked" in (refuser / "run" / "report.html").read_text()


def verdict_on(question: str) -> str:
    if "What is 10 " in question or "What is 20 " in question or "What is 0 " in question:
        return "It depends."
    return "Yes" if "I cannot" in question.partition("### Answer")[2] else " No."


@pytest.mark.slow
def test_two_ranks_come_to_the_verdict_of_one(fresh_run, refuser):
    write_fit(refuser, 5e-3, 60, action="stop", every_n_steps=40)
    code, output = fresh_run("fit", "--config", "gated.yaml")
    assert code == 1, output
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=4", "--trainer.default_root_dir=two"]
    code, output = fresh_run("fit", "--config", "gated.yaml", *two)
    assert code == 1 and "The safety gate: worse than before training: safe prompts refused" in output, output
    assert found_by(refuser / "two") == found_by(refuser / "run")
    keys = asked(refuser / "two", 60)
    assert len(keys) == len(set(keys)) == 24 + 8 + 8
    assert len(list((refuser / "two" / "evaluation" / "safety-step=60").glob("answers-*.jsonl"))) == 2
