"""GRPO whose completions a server writes: what it is told and when, how its tokens are weighed, what it may break."""

import json
import math
import socket
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from callbacks import RunCheckpoint
from datamodules import DataError, OpenAIEngine
from llm_lightning.errors import UserError
from llm_lightning.modules.ppo.metrics import Averages
from llm_lightning.modules.ppo.settings import Advantages, KLPenalty, Rollout, Update
from llm_lightning.rollouts import Sampling, ServedEngine
from tests.adapter_server import AdapterServer
from tests.chat_server import hang, malformed, status

SETTINGS = {
    "peft": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=True),
    "advantages": Advantages("grpo"), "rollout": Rollout(Sampling(5), 4), "batch_size": 4,
    "kl": KLPenalty(0.0), "update": Update(epochs=1), "lr": 2e-2,
}  # fmt: skip


@pytest.fixture
def server(policy_folder):
    with AdapterServer(policy_folder).running() as running:
        yield running


@pytest.fixture
def served(fit, server, tmp_path):
    def run(max_steps, timeout=20.0, max_retries=2, **settings):
        def engine(sampling, ends, num_slots):
            endpoint = OpenAIEngine(server.url, "base", timeout=timeout, max_retries=max_retries, concurrency=4)
            return ServedEngine(sampling, ends, num_slots, endpoint, str(tmp_path / "adapters"))

        return fit(max_steps, engine=engine, **SETTINGS | settings)

    return run


def timeless(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith("throughput/")}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_learns(served, seed):
    module = served(24, batch_size=8, lr=4e-2, rollout=Rollout(Sampling(5), 4, seed=seed))
    first, last = (sum(m["train/reward"] for m in part) / 3 for part in (module.history[:3], module.history[-3:]))
    assert last > first + 0.12, (first, last)


def test_each_rollout_is_by_the_weights_of_its_step(served, server, tmp_path, policy_folder):
    module = served(3)
    # What the server says of its tokens is what the trainer says of them: it has the weights of this step.
    assert max(m["rollout/sampler_gap"] for m in module.history) < 1e-4
    assert all(m["train/importance_weight"] == pytest.approx(1, abs=1e-3) for m in module.history)
    names = [name for phase, name in server.phases if phase == "complete"]
    expected = [("load", names[0]), ("complete", names[0])]
    for former, name in pairwise(names):
        expected += [("load", name), ("unload", former), ("complete", name)]
    assert server.phases == expected and len(set(names)) == 3
    (folder,) = (tmp_path / "adapters").iterdir()
    assert [folder.name] == [names[-1]] == list(server.loaded)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]) == policy_folder.resolve() and config["r"] == 4


def test_tokens_of_a_server_that_is_not_quite_the_policy_are_weighed(served, server):
    def shift(model):
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)

    server.shift = shift
    module = served(1, lr=0.0, batch_size=8, update=Update(epochs=1, importance_cap=1.5))
    e, metrics = module.experiences[0], module.history[0]
    assert metrics["rollout/sampler_gap"] > 0.02
    # By hand, in float64, token by token.
    averages, rows = Averages(module.device), [0, 3, 5, 6]
    loss, _ = module.loss(e, rows, averages)
    expected, weights = 0.0, []
    for row in rows:
        prompt, one = e.prompts[row], e.completions[row]
        with torch.no_grad():
            logits = module.model(torch.cat([prompt, one.tokens])[None]).logits[0, len(prompt) - 1 : -1]
        now = logits.double().log_softmax(-1)
        for t, token in enumerate(one.tokens.tolist()):
            weights.append(min(1.5, math.exp(float(now[t, token]) - float(one.logprobs[t]))))
            expected -= weights[-1] * float(e.advantages[row, t])  # at a ratio of one
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    means = averages.means(lambda values: values)
    assert means["train/importance_weight"] == pytest.approx(sum(weights) / len(weights), rel=1e-4)
    assert means["train/importance_capped"] == pytest.approx(sum(w == 1.5 for w in weights) / len(weights))
    assert 0 < means["train/importance_capped"] < 1


@pytest.mark.slow
def test_calls_that_fail_are_made_again(served, server):
    whole = served(2)
    faults = [malformed, status(503, retry_after="0"), hang(1.5), dead]

    def fault(body, attempt):
        number = len(server.server.calls)
        return faults[number % 4] if attempt == 0 and number % 3 == 0 else None

    server.fault = fault
    server.server.calls.clear()
    again = served(2, timeout=1.0, max_retries=4)
    assert [timeless(m) for m in again.history] == [timeless(m) for m in whole.history]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["dies", "talks nonsense"])
def test_a_server_that_goes_on_failing_stops_the_run_and_the_same_command_goes_on(served, server, tmp_path, how):
    whole = served(3)
    nonsense = {"choices": [{"token_ids": [10**9], "logprobs": {"token_logprobs": [-1.0]}}]}
    num_loaded = 0

    def fault(body, attempt):
        nonlocal num_loaded
        num_loaded += "lora_path" in body and attempt == 0
        if num_loaded <= 1 or "prompt" not in body:
            return None
        if how == "dies":
            return dead
        return lambda handler: send(handler, nonsense)

    server.server.calls.clear()
    server.fault = fault
    with pytest.raises((UserError, DataError), match=r"model\.engine: .* came to nothing|in a row came to nothing"):
        served(3, max_retries=1, callbacks=[RunCheckpoint(1, dirpath=tmp_path / "ckpt")])
    assert (tmp_path / "ckpt" / "step=1.ckpt").exists() and not (tmp_path / "ckpt" / "step=2.ckpt").exists()
    server.fault = lambda body, attempt: None
    resumed = served(3, ckpt_path=tmp_path / "ckpt" / "step=1.ckpt")
    assert [timeless(m) for m in resumed.history] == [timeless(m) for m in whole.history[1:]]
    weights = resumed.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.state_dict().items())


def dead(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


def send(handler, reply):
    content = json.dumps(reply).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


@pytest.mark.slow
def test_the_next_rollout_is_by_the_adapter_that_this_step_began_with(served, server, tmp_path):
    rollout = Rollout(Sampling(5), 4, staleness=1)
    module = served(4, rollout=rollout)
    names = [name for phase, name in server.phases if phase == "complete"]
    # Four rollouts by three weights: the first two are by those of the start.
    assert len(names) == len(set(names)) == 3
    gaps = [m["rollout/sampler_gap"] for m in module.history]
    assert gaps[0] < 1e-4 < min(gaps[1:]) and all(m["train/importance_weight"] > 0 for m in module.history)
    server.phases.clear()
    server.fault = lambda body, attempt: dead if "prompt" in body and len(server.phases) > 3 else None
    with pytest.raises((UserError, DataError), match=r"model\.engine: .* came to nothing|in a row came to nothing"):
        served(4, max_retries=1, rollout=rollout, callbacks=[RunCheckpoint(1, dirpath=tmp_path / "ckpt")])
    server.fault = lambda body, attempt: None
    done = max(int(path.stem.removeprefix("step=")) for path in (tmp_path / "ckpt").glob("step=*.ckpt"))
    assert 1 <= done < 4
    resumed = served(4, rollout=rollout, ckpt_path=tmp_path / "ckpt" / f"step={done}.ckpt")
    assert len(resumed.history) == 4 - done


@pytest.mark.slow
def test_a_server_that_has_the_adapter_already_is_asked_at_once(served, server):
    """As after a kill between loading and writing."""
    first = served(1)
    name = server.phases[0][1]
    assert name in server.loaded
    again = served(1)
    assert server.phases == [("load", name), ("complete", name)]
    assert [timeless(m) for m in again.history] == [timeless(m) for m in first.history]


def test_what_cannot_be_handed_over_is_refused(served, server):
    with pytest.raises(UserError, match=r"model\.engine=ServedEngine hands weights over as an adapter"):
        served(1, peft=None)
    assert not server.server.calls
    server.fault = lambda body, attempt: status(400) if "lora_path" in body else None
    with pytest.raises(DataError, match="refuses the call with HTTP 400"):
        served(1)
