"""Completions from a real `transformers serve`, which reads the policy's adapter at each step.

pip install 'transformers[serving]' && pytest -m slow tests/llm_lightning/modules/test_transformers_serve.py
"""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.utils.import_utils import is_serve_available

from datamodules import OpenAIEngine
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning.models.loading.new_tokens import read_tokenizer
from llm_lightning.modules.ppo.settings import Advantages, KLPenalty, Rollout, Update
from llm_lightning.rollouts import Sampler, Sampling, ServedEngine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_serve_available(), reason="transformers[serving] is not installed"),
]
LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
PROMPTS = ("What is 1 plus 2?", "What is 3 plus 9?", "It is a")


def learn(model, text, tokenizer):
    """So that it writes this text: what random weights write is not UTF-8, and a server of texts loses it."""
    ids = torch.tensor([tokenizer.encode(text)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(40):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def policy_folder(policy_folder, tmp_path_factory):
    tokenizer = read_tokenizer(str(policy_folder))
    torch.manual_seed(0)
    model = learn(
        Backbone(path=str(policy_folder)).build(tokenizer), "What is 1 plus 2? It is a number, 3. " * 3, tokenizer
    )
    save_model_folder(model, tokenizer, folder := tmp_path_factory.mktemp("policy"))
    return folder


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    code = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", code, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def wait_for(url, server, log):
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def engine_of(url, folder, sampling, ends):
    endpoint = OpenAIEngine(url, "base", concurrency=1, timeout=60.0, max_retries=1)
    return ServedEngine(sampling, ends, 1, endpoint, str(folder), protocol="transformers")


def test_greedy_completions_are_those_of_our_sampler_with_the_same_adapter(url, policy_folder, tmp_path):
    tokenizer = read_tokenizer(str(policy_folder))
    torch.manual_seed(0)
    model = get_peft_model(Backbone(path=str(policy_folder)).build(tokenizer), LORA)
    learn(model, "What is 1 plus 2? The number 3 plus a number. It is 9. " * 2, tokenizer)
    prompts = [torch.tensor(tokenizer.encode(text)) for text in PROMPTS]
    keys, ends = [[(number,)] for number in range(3)], [tokenizer.eos_token_id]
    # The likeliest of very few tokens: with a seed, and yet the same from two programs.
    engine = engine_of(url, tmp_path / "adapters", Sampling(8, top_k=1), ends)
    engine.check(tokenizer)
    served = engine.sample(model, prompts, keys)
    own = Sampler(Sampling(8, temperature=0.0), ends).sample(model, prompts, keys)
    texts = [[tokenizer.decode(one.tokens, skip_special_tokens=True) for one in each] for each in (served, own)]
    assert texts[0] == texts[1] and all(texts[0])
    assert all(one.logprobs.isnan().all() and len(one.logprobs) == len(one.tokens) for one in served)
    with model.disable_adapter():
        base = Sampler(Sampling(8, temperature=0.0), ends).sample(model, prompts, keys)
    assert texts[0] != [tokenizer.decode(one.tokens, skip_special_tokens=True) for one in base]


def test_it_learns(url, fit, tmp_path):
    module = fit(
        12, engine=lambda sampling, ends, slots: engine_of(url, tmp_path / "adapters", sampling, ends),
        peft=LORA, advantages=Advantages("grpo"), lr=4e-2,
        rollout=Rollout(Sampling(5), 4), batch_size=8, kl=KLPenalty(0.0), update=Update(epochs=1),
    )  # fmt: skip
    first, last = (sum(m["train/reward"] for m in part) / 3 for part in (module.history[:3], module.history[-3:]))
    assert last > first + 0.12, (first, last)
    assert all("rollout/sampler_gap" not in m and m["train/importance_weight"] == 1 for m in module.history)
