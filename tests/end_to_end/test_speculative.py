"""Drafts by the command line: the same answers of `generate`, `chat` and PPO, and which drafts are refused."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from llm_lightning.__main__ import main

TEMPLATE = Path(__file__).parents[2] / "datamodules" / "templates" / "chatml.jinja"
LOOKUP = json.dumps({"class_path": "PromptLookup", "init_args": {"num_tokens": 5, "ngram": 2}})


@pytest.fixture
def asked(folder, network, cache, monkeypatch):
    for name in ("network", "draft", "foreign"):
        shutil.copytree(network, folder / name)
        shutil.copy(TEMPLATE, folder / name / "chat_template.jinja")
    tokenizer = json.loads((folder / "foreign" / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    first, second = list(ids)[-2:]
    ids[first], ids[second] = ids[second], ids[first]
    (folder / "foreign" / "tokenizer.json").write_text(json.dumps(tokenizer))
    rows = [{"question": f"What is {i} plus {i}?"} for i in range(6)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(cache))
    return folder


def generate(output, *args):
    shared = ["generate", "--model", "network", "--prompts", "prompts.jsonl", "--num_samples", "2"]
    assert main([*shared, "--max_new_tokens", "40", "--output", output, *args]) == 0
    return (Path(output) / "answers.jsonl").read_text()


def test_answers_with_drafts_are_the_same(asked):
    plain = generate("plain")
    assert generate("lookup", "--speculative", LOOKUP) == plain
    assert generate("model", "--speculative", "DraftModel", "--speculative.path", "draft") == plain


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--speculative", "DraftModel", "--speculative.path", "foreign"], "another vocabulary than the model"),
        (["--speculative", "DraftModel", "--speculative.path", "missing"], "missing"),
        (["--speculative", "PromptLookup", "--speculative.ngram", "0"], "speculative.ngram=0 must be at least 1"),
    ],
)
def test_what_cannot_draft_is_one_message(asked, capfd, args, message):
    code = main(["generate", "--model", "network", "--prompts", "prompts.jsonl", *args])
    error = capfd.readouterr().err
    assert code == 2 and message in error and "Traceback" not in error


def test_an_endpoint_drafts_for_itself(asked, capfd):
    engine = json.dumps(
        {"class_path": "OpenAIEngine", "init_args": {"url": "http://localhost:9/v1", "model_name": "m"}}
    )
    code = main(["generate", "--engine", engine, "--prompts", "prompts.jsonl", "--speculative", "PromptLookup"])
    assert code == 2 and "--speculative goes with --model" in capfd.readouterr().err


def test_a_chat_with_drafts_says_the_same(asked, monkeypatch, capfd):
    replies = []
    for args in ([], ["--speculative", "PromptLookup"], ["--speculative", "draft"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("What is 1?\nAnd 2?\n"))
        assert main(["chat", "network", "--max_new_tokens", "40", *args]) == 0
        replies.append(capfd.readouterr().out)
    assert replies[0].strip() and replies == [replies[0]] * 3
    assert main(["chat", "network", "--speculative", "foreign"]) == 2
    assert "another vocabulary" in capfd.readouterr().err


@pytest.mark.slow
def test_ppo_with_drafts_writes_the_same(run, ppo_folder):
    shared = ("fit", "--config", "ppo.yaml", "--trainer.max_steps=3", "--model.rollout.sampling.max_new_tokens=40")
    engine = json.dumps(
        {"class_path": "llm_lightning.rollouts.Sampler", "init_args": {"speculative": json.loads(LOOKUP)}}
    )
    written = []
    for name, args in (("plain", ()), ("drafts", ("--model.engine", engine))):
        code, output = run(*shared, f"--trainer.default_root_dir={name}", *args)
        assert code == 0, output
        files = sorted((ppo_folder / name).glob("**/rollouts-*.jsonl"))
        written.append([file.read_text() for file in files])
    assert written[0] == written[1] and len(written[0]) > 0
