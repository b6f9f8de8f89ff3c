"""A teacher behind a real server that scores tokens as vLLM does: the cache, what is asked, and servers that cannot."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_lightning.__main__ import main
from tests.chat_server import ChatServer, completion, status
from tests.end_to_end.test_distillation import logged, taught  # noqa: F401 (a fixture)

KEY = "sk-of-a-teacher-7f3a91"
CACHED = ("--model.teacher_logprobs=cached", "--model.top_k=8", "--model.backbone.dropout=0", "--trainer.max_steps=6",
          "--trainer.val_check_interval=6")  # fmt: skip


class Scorer:
    """Answers `/completions` with `prompt_logprobs` by a real network."""

    def __init__(self, folder):
        self.network = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.places = lambda places: places

    @torch.no_grad()
    def __call__(self, body):
        ids = torch.tensor([body["prompt"]])
        logprobs = self.network(input_ids=ids).logits[0, :-1].log_softmax(-1)
        places = [
            None,
            *(self.place(row, token, body) for row, token in zip(logprobs, body["prompt"][1:], strict=True)),
        ]
        choice = {"index": 0, "text": "", "finish_reason": "length", "prompt_logprobs": self.places(places)}
        return json.dumps({"choices": [choice], "usage": {"total_tokens": len(body["prompt"]) + 1}}).encode()

    def place(self, row, token, body):
        best = row.topk(body["prompt_logprobs"]).indices.tolist()
        return {
            str(number): {"logprob": float(row[number]), "rank": 1, "decoded_token": self.tokenizer.decode([number])}
            for number in dict.fromkeys([token, *best])
        }


@pytest.fixture
def here(taught, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(taught)
    monkeypatch.setenv("LLM_LIGHTNING_CACHE", str(tmp_path / "own-cache"))
    monkeypatch.setenv("TEACHERS_KEY", KEY)
    return taught


@pytest.fixture
def server(here):
    with ChatServer().running() as server:
        server.answer = Scorer(here / "taught" / "model" / "last")
        yield server


def by(server, **settings):
    init_args = {"url": server.url, "model_name": "teacher", "api_key_variable": "TEACHERS_KEY"} | settings
    endpoint = {"class_path": "datamodules.OpenAIEngine", "init_args": init_args}
    return ("--model.teacher=null", f"--model.endpoint={json.dumps(endpoint)}")


def run(command, root, *args):
    return main([command, "--config", "tiny.yaml", *CACHED, *args, f"--trainer.default_root_dir={root}"])


@pytest.mark.parametrize("context", [pytest.param((), marks=pytest.mark.slow), ("--model.context=You count.",)])
def test_a_server_is_the_teacher_that_it_serves(here, server, capfd, context):
    refused = []

    def refuse_once(body, attempt):
        if len(server.calls) == 20 and not refused:
            refused.append(body)
            return status(401)
        return None

    server.fault = refuse_once
    assert run("distill-cache", "straight", *by(server, concurrency=1), *context) == 2
    assert "refuses the call with HTTP 401" in capfd.readouterr().err
    calls_before = len(server.calls)
    assert run("fit", "served", *by(server), *context) == 0
    said = capfd.readouterr()
    # Rows that were there are not paid for again; those of the batch that was refused are.
    prompts = [json.dumps(call["prompt"]) for call in server.calls]
    before, after = set(prompts[:calls_before]), set(prompts[calls_before:])
    assert 0 < len(before & after) < len(before) / 2 < len(after)
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert all(KEY not in path.read_text(errors="replace") for path in Path("served").rglob("*") if path.is_file())
    assert KEY not in said.out + said.err

    assert run("fit", "local", *context) == 0
    for name in ("train/divergence", "val/divergence", "train/loss"):
        assert logged(here / "served", name) == pytest.approx(logged(here / "local", name), rel=1e-3, abs=1e-6), name
    num_calls = len(server.calls)
    assert run("fit", "again", *by(server), *context) == 0 and len(server.calls) == num_calls


def test_mistakes_and_servers_that_cannot(here, server, capfd, monkeypatch):
    def fails(words, *args):
        assert run("fit", "run", *by(server), *args) == 2, words
        error = capfd.readouterr().err
        assert words in error.rpartition("llm-lightning: error: ")[2] and KEY not in error, error

    fails("it fills a cache, and model.teacher_logprobs=live has none", "--model.teacher_logprobs=live")
    fails("an endpoint tells log-probabilities at 1 alone", "--model.objective.temperature=2")
    fails("it is the teacher; leave out model.teacher and model.ensemble", "--model.ensemble=[{path: network}]")
    assert not server.calls

    scorer = server.answer
    server.answer = lambda body: completion("no numbers")
    fails("tells no log-probabilities of given tokens (prompt_logprobs)")
    server.answer = scorer
    scorer.places = lambda places: places[:-1]
    fails(["", " were sent: it adds some, or leaves some out"][1].strip())
    scorer.places = lambda places: [place and dict(list(place.items())[:5]) for place in places]
    fails("model.top_k=8: the endpoint names 5 tokens at a place")
    scorer.places = lambda places: [
        place and {number: one | {"decoded_token": "other"} for number, one in place.items()} for place in places
    ]
    fails("has another vocabulary: its token")
    scorer.places = lambda places: [
        place and {str(int(number) + 900): one for number, one in place.items()} for place in places
    ]
    fails("knows other tokens than the data's tokenizer")
    monkeypatch.delenv("TEACHERS_KEY")
    fails("the environment has no TEACHERS_KEY")
