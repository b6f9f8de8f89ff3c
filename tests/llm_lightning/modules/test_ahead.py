"""Completions that are written one step ahead: by which weights, how they are weighed, and what a resumed run has."""

import math
import threading
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig

from llm_lightning.errors import UserError
from llm_lightning.modules.ppo.ahead import RolloutAhead
from llm_lightning.modules.ppo.metrics import Averages
from llm_lightning.modules.ppo.settings import Advantages, KLPenalty, Rollout, Update
from llm_lightning.rollouts import Completion, Sampling
from tests.llm_lightning.modules.ppo_fits import Recorder

ROLLOUT = Rollout(Sampling(6), num_samples=4, staleness=1)
SETTINGS = {"advantages": Advantages("grpo"), "kl": KLPenalty(0.0), "update": Update(epochs=1), "batch_size": 4,
            "rollout": ROLLOUT, "lr": 1e-2}  # fmt: skip
LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=True)


class Weighed(Recorder):
    """Keeps each step's weights, as it begins with them, and its batch."""

    def training_step(self, batch, batch_idx):
        self.weights = [*getattr(self, "weights", []), {n: w.clone() for n, w in self.model.state_dict().items()}]
        self.batches = [*getattr(self, "batches", []), batch]
        super().training_step(batch, batch_idx)


def timeless(module):
    return [{n: v for n, v in metrics.items() if not n.startswith("throughput/")} for metrics in module.history]


def texts(experience):
    return [one.tokens.tolist() for one in experience.completions]


@pytest.mark.parametrize("peft", [None, LORA])
def test_a_step_learns_from_what_the_weights_of_the_step_before_wrote(fit, peft):
    module = fit(4, kind=Weighed, peft=peft, **SETTINGS)
    asked = [prompt for batch in module.batches for prompt in batch["prompts"]]
    once = fit(4, kind=Weighed, peft=peft, **SETTINGS | {"rollout": replace(ROLLOUT, staleness=0)})
    assert asked == [prompt for batch in once.batches for prompt in batch["prompts"]]
    assert len({str(prompt) for prompt in asked}) == 16
    assert texts(module.experiences[0]) == texts(once.experiences[0])
    for step in range(4):
        module.model.load_state_dict(module.weights[max(0, step - 1)])
        again = module.rollout(module.batches[step], module.keys(module.batches[step], step))[1]
        e = module.experiences[step]
        assert texts(e) == [one.tokens.tolist() for one in again]
        drawn = torch.cat([one.logprobs for one in e.completions])
        assert torch.allclose(drawn, torch.cat([one.logprobs for one in again]), atol=1e-6)
        if step > 1:
            assert not torch.allclose(drawn, e.logprobs[e.mask], atol=1e-3)


def test_tokens_of_earlier_weights_are_weighed(fit):
    """In float64, token by token: the loss, at a ratio of one, of completions that the policy no longer is."""
    module = fit(2, kind=Weighed, **SETTINGS | {"lr": 5e-2, "update": Update(epochs=1, importance_cap=1.2)})
    e, rows = module.experiences[1], [0, 5, 6, 15]
    module.model.load_state_dict(module.weights[1])
    averages, expected, weights = Averages(module.device), 0.0, []
    loss, _ = module.loss(e, rows, averages)
    for row in rows:
        prompt, one = e.prompts[row], e.completions[row]
        with torch.no_grad():
            logits = module.model(torch.cat([prompt, one.tokens])[None]).logits[0, len(prompt) - 1 : -1]
        now = logits.double().log_softmax(-1)
        for place, token in enumerate(one.tokens.tolist()):
            weights.append(min(1.2, math.exp(float(now[place, token]) - float(one.logprobs[place]))))
            expected -= weights[-1] * float(e.advantages[row, place])
    assert float(loss) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert min(weights) < 0.9 and max(weights) == 1.2
    assert averages.means(lambda sums: sums)["train/importance_weight"] == pytest.approx(sum(weights) / len(weights))


def every_step(folder):
    return ModelCheckpoint(folder / "ckpt", "{step}", every_n_train_steps=1, save_top_k=-1)


def test_a_resumed_run_is_the_uninterrupted_one(fit, tmp_path):
    def run(steps, **given):
        return fit(steps, val_batches=1, callbacks=[every_step(tmp_path)], **SETTINGS | given)

    whole = run(4)
    for step in (1, 3):
        resumed = run(4, ckpt_path=tmp_path / "ckpt" / f"step={step}.ckpt")
        assert timeless(resumed) == timeless(whole)[step:]
        assert all(torch.equal(own, other) for own, other in zip(resumed.parameters(), whole.parameters(), strict=True))
    # Of a checkpoint without it, as of another batch size, the prompts are written to now.
    resumed = run(4, batch_size=2, ckpt_path=tmp_path / "ckpt" / "step=2.ckpt")
    assert [len(e.prompts) for e in resumed.experiences] == [8, 8]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_learns(fit, seed):
    settings = SETTINGS | {"lr": 2e-2, "batch_size": 8, "rollout": replace(ROLLOUT, seed=seed)}
    module = fit(16, **settings)
    first, last = (sum(m["train/reward"] for m in part) / 3 for part in (module.history[:3], module.history[-3:]))
    assert last > first + 0.12, (first, last)


def write(prompts, num_samples=2):
    return [
        Completion(prompt[: 1 + sample] + 7, torch.rand(1 + sample), sample == 1)
        for prompt in prompts
        for sample in range(num_samples)
    ]


def test_what_a_checkpoint_has_is_shared_by_any_number_of_ranks():
    prompts = [torch.arange(2, 5 + number) for number in range(6)]
    ahead, resumed = RolloutAhead(), RolloutAhead()
    written = write(prompts)
    ahead.begin(lambda: written, prompts, "cpu")
    state = ahead.state_dict()
    assert [tensor.dtype for tensor in state.values()][:2] == [torch.int32, torch.int64]
    for first, count in ((0, 6), (0, 2), (2, 2), (4, 2)):
        resumed.load_state_dict(state)
        taken = resumed.take(prompts[first : first + count], first)
        wanted = written[2 * first : 2 * (first + count)]
        assert [one.is_finished for one in taken] == [one.is_finished for one in wanted]
        for one, other in zip(taken, wanted, strict=True):
            assert torch.equal(one.tokens, other.tokens) and torch.equal(one.logprobs, other.logprobs)
    assert resumed.take(prompts, 0) is None  # taken already
    resumed.load_state_dict(state)
    assert resumed.take(prompts[1:3], 0) is None  # those of other data
    assert RolloutAhead().state_dict().keys() == state.keys()


def test_it_writes_while_others_work_and_what_goes_wrong_is_said_at_the_step_that_needs_it():
    ahead, may_write, prompts = RolloutAhead(), threading.Event(), [torch.arange(3)]

    def fail():
        may_write.wait(30)
        raise UserError("the server is gone")

    ahead.begin(fail, prompts, "cpu")
    may_write.set()  # reached although it could not write yet
    ahead.wait()
    assert not len(ahead.state_dict()["tokens"])
    with pytest.raises(UserError, match="the server is gone"):
        ahead.take(prompts, 0)


class OneByOne:
    def sample(self, model, prompts, keys):
        return write(prompts, len(keys[0]))


def test_refusals(fit):
    for rollout, words in (
        (replace(ROLLOUT, staleness=2), r"model\.rollout\.staleness=2 must be 0 or 1"),
        (replace(ROLLOUT, max_resamples=1), r"model\.rollout\.max_resamples=1 .*staleness=1"),
    ):
        with pytest.raises(UserError, match=words):
            fit(1, **SETTINGS | {"rollout": rollout})
    with pytest.raises(UserError, match=r"model\.rollout\.staleness=1: OneByOne has no method `begin`"):
        fit(1, engine=lambda *settings: OneByOne(), **SETTINGS)
