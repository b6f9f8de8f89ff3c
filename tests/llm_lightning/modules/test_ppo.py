"""PPO, GRPO and RLOO on a tiny policy: what an update does, that it learns, and what it leaves behind."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig

from callbacks import RunCheckpoint
from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.modules.gradients import gradient_norm
from llm_lightning.modules.ppo.guards import Guards
from llm_lightning.modules.ppo.metrics import Averages
from llm_lightning.modules.ppo.settings import Advantages, CriticSettings, KLPenalty, Rollout, Update
from llm_lightning.rewards import Reward
from llm_lightning.rollouts import Sampling
from tests.llm_lightning.modules.ppo_fits import ROLLOUT, Recorder, share_of_a

LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.1)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_an_update_is_what_the_formulas_say(fit):
    """The loss of a minibatch against loops in float64 over single sequences; with every term of it switched on."""
    module = fit(
        1, kl=KLPenalty(0.2, "k3", place="loss"), critic=CriticSettings(coef=0.5), advantages=Advantages(lam=0.9),
        update=Update(epochs=1, entropy_coef=0.1), rollout=replace(ROLLOUT, missing_eos_penalty=0.3),
    )  # fmt: skip
    e, settings = module.experiences[0], module.critic_settings
    with torch.no_grad():  # somewhere else than where the experience was made
        torch.manual_seed(4)
        for parameter in module.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    module.double()
    rows = [1, 2, 5]
    loss, update_kl = module.loss(e, rows, Averages(module.device))
    expected = expected_kl = 0.0
    for row in rows:
        prompt, answer = e.prompts[row], e.completions[row].tokens
        output = module.model(torch.cat([prompt, answer])[None], output_hidden_states=True)
        p = output.logits[0].softmax(-1)[len(prompt) - 1 : -1]
        states = output.hidden_states[-1][0, len(prompt) - 1 : -1]
        values = (states @ module.critic.head.weight[0] + module.critic.head.bias).tolist()
        for t, token in enumerate(answer.tolist()):
            now, old, ref = math.log(p[t, token]), float(e.logprobs[row, t]), float(e.ref_logprobs[row, t])
            ratio, advantage = math.exp(now - old), float(e.advantages[row, t])
            expected -= min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
            expected += 0.1 * sum(float(x) * math.log(x) for x in p[t])
            expected += 0.2 * (math.exp(ref - now) - 1 - (ref - now))
            target, v_old = float(e.returns[row, t]), float(e.values[row, t])
            bounded = v_old + min(max(values[t] - v_old, -settings.clip_range), settings.clip_range)
            expected += 0.5 * max((values[t] - target) ** 2, (bounded - target) ** 2) / 2
            expected_kl += ratio - 1 - math.log(ratio)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert float(update_kl) == pytest.approx(expected_kl, rel=1e-4)


@pytest.mark.parametrize("peft", [None, LORA])
def test_the_first_update_begins_at_a_ratio_of_one(fit, peft):
    """Dropout is in the config and in the adapter: it must be off in every pass."""
    module = fit(1, update=Update(epochs=1), peft=peft)
    metrics = module.history[0]
    assert metrics["train/update_kl"] < 1e-9
    assert metrics["train/clip_share"] == 0
    assert metrics["train/kl"] < 1e-9
    assert metrics["rollout/sampler_gap"] < 1e-5
    e = module.experiences[0]
    assert e.values[e.mask].tolist() == pytest.approx([float(e.scores.mean())] * int(e.mask.sum()), abs=1e-6)
    assert metrics["train/policy_loss"] == pytest.approx(0, abs=1e-5)  # whitened advantages


def test_the_critic_begins_where_the_rewards_are(fit):
    """From zero it would have to climb there, each token by another amount."""

    def far_from_zero(prompts, completions, columns):
        return [20 + share for share in share_of_a(prompts, completions, columns)]

    module = fit(4, rewards={"a": Reward(far_from_zero)}, lr=0.0, batch_size=32, kl=KLPenalty(0.0))
    assert max(metrics["train/value_loss"] for metrics in module.history) < 0.01
    assert min(metrics["train/explained_variance"] for metrics in module.history) > -1
    assert module.critic.head.weight.any()


def test_advantages_come_from_the_reward_less_kl(fit):
    module = fit(
        2, kl=KLPenalty(0.3, "k1"), advantages=Advantages(gamma=1.0, lam=1.0), batch_size=32,
        rollout=replace(ROLLOUT, missing_eos_penalty=0.25),
    )  # fmt: skip
    e = module.experiences[1]
    kl = (e.logprobs - e.ref_logprobs).double()
    assert kl.abs().max() > 1e-3
    texts = [row["continuation"] for row in module.samples]
    scores = torch.tensor(share_of_a([], texts, {})).double() - 0.25 * ~e.is_finished
    returns = [
        float(scores[i]) - 0.3 * kl[i, t : int(e.mask[i].sum())].sum().item()
        for i in range(32)
        for t in range(12)
        if e.mask[i, t]
    ]
    assert e.returns[e.mask].tolist() == pytest.approx(returns, abs=1e-4)
    flat = e.advantages[e.mask]
    assert float(flat.mean()) == pytest.approx(0, abs=1e-5)
    assert float(flat.std(unbiased=False)) == pytest.approx(1, abs=1e-4)
    assert not e.advantages[~e.mask].any()


def test_a_reward_never_lands_on_padding(fit):
    """With pad = eos, a completion's EOS is a real token: it is trained, and it carries the reward."""

    def only_if_done(prompts, completions, columns):
        return [1.0] * len(completions)

    module = fit(
        1, rewards={"one": Reward(only_if_done)}, kl=KLPenalty(0.0), advantages=Advantages(lam=1.0), batch_size=64
    )
    e = module.experiences[0]
    assert e.is_finished.any() and not e.is_finished.all()
    for row, completion in enumerate(e.completions):
        length = len(completion.tokens)
        assert int(e.mask[row].sum()) == length
        assert e.returns[row, :length].tolist() == [1.0] * length
        if completion.is_finished:
            assert int(completion.tokens[-1]) in module.engine.eos_token_ids
            assert e.mask[row, length - 1]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("gae", {"lr": 3e-3}),
        pytest.param("gae", {"lr": 3e-3, "critic": CriticSettings("network")}, marks=pytest.mark.slow),
        ("gae", {"lr": 3e-2, "peft": LORA}),
        ("grpo", {"lr": 3e-3, "rollout": Rollout(Sampling(6), 4), "batch_size": 8}),
        (
            "dr_grpo",
            {
                "lr": 3e-3,
                "rollout": Rollout(Sampling(6), 4),
                "batch_size": 8,
                "update": Update(clip_range_high=0.28, average="constant"),
            },
        ),
        (
            "grpo",
            {
                "lr": 3e-3,
                "rollout": Rollout(Sampling(6), 4),
                "batch_size": 8,
                "update": Update(clip_range=3e-2, clip_range_high=4e-2, ratio="sequence", average="completions"),
            },
        ),
        pytest.param(
            "rloo",
            {
                "lr": 3e-3,
                "rollout": Rollout(Sampling(6), 4),
                "batch_size": 8,
                "kl": KLPenalty(0.02, "k3", place="loss"),
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_it_learns(fit, method, settings):
    settings = {"kl": KLPenalty(0.02), "batch_size": 32, "rollout": Rollout(Sampling(6))} | settings
    module = fit(16, advantages=Advantages(method), **settings)
    first, last = (sum(m["train/reward"] for m in part) / 3 for part in (module.history[:3], module.history[-3:]))
    assert last > first + 0.12, (first, last)
    assert all(math.isfinite(value) for metrics in module.history for value in metrics.values())
    assert module.history[-1]["train/kl"] > 0.1
    assert module.num_updates == module.trainer.global_step == 16


def test_the_reference_does_not_move_and_is_in_no_checkpoint(fit):
    for peft in (None, LORA):
        module = fit(3, peft=peft, lr=1e-2)
        e = module.experiences[0]
        before = e.ref_logprobs.clone()
        module.evaluate(e)
        assert torch.allclose(e.ref_logprobs, before, atol=1e-6)
        assert float((e.logprobs - e.ref_logprobs).abs().max()) > 0.05
        assert not any("reference" in name for name in module.state_dict())


def test_epochs_minibatches_and_their_early_end(fit):
    module = fit(1, update=Update(3, 4))
    assert module.history[0]["train/num_optimizer_steps"] == 12
    assert module.trainer.global_step == 1
    ended = fit(1, update=Update(3, 4, max_update_kl=1e-6), lr=1e-2, batch_size=32)
    assert ended.history[0]["train/num_optimizer_steps"] == 1


def test_micro_batches_change_nothing(fit):
    whole = fit(2, update=Update(2, 2))
    cut = fit(2, update=Update(2, 2, micro_batch_tokens=30))
    assert len(cut.experiences[0].groups(range(8), 30)) > 3
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(cut)[name], atol=2e-5), name
    assert whole.history[1]["train/loss"] == pytest.approx(cut.history[1]["train/loss"], abs=1e-5)


@pytest.mark.parametrize("kl", [KLPenalty(0.1, "k3", place="loss"), KLPenalty(0.0)])
def test_one_pass_an_answer_gives_the_same_as_scoring_it_before(fit, kl):
    class Scoring(Recorder):
        """Scores the completions before the update, though it needs not."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            assert self.updates_once
            self.updates_once = False

    settings = {
        "advantages": Advantages("grpo"), "rollout": replace(ROLLOUT, num_samples=4), "kl": kl,
        "update": Update(1, micro_batch_tokens=300),
    }  # fmt: skip
    once, scored = fit(3, **settings), fit(3, kind=Scoring, **settings)
    timeless = lambda m: {k: v for k, v in m.items() if not k.startswith("throughput/")}  # noqa: E731
    assert [timeless(m) for m in once.history] == [timeless(m) for m in scored.history]
    assert once.history[2]["train/entropy"] > 0
    assert all(torch.equal(value, weights(scored)[name]) for name, value in weights(once).items())


def test_every_step_is_from_other_random_numbers_and_a_seed_repeats(fit):
    first, again, other = fit(2), fit(2), fit(2, rollout=replace(ROLLOUT, seed=2))
    texts = [row["continuation"] for row in first.samples]
    assert texts == [row["continuation"] for row in again.samples]
    assert texts != [row["continuation"] for row in other.samples]
    assert weights(first).keys() == weights(again).keys()
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(first).items())


@pytest.mark.parametrize(
    "settings",
    [{"advantages": Advantages(scale_rewards=True), "kl": KLPenalty(0.1, target=0.5, horizon=100)}, {"peft": LORA}],
)
def test_a_resumed_run_is_the_uninterrupted_one(fit, tmp_path, settings):
    whole = fit(6, update=Update(2), **settings)
    fit(3, update=Update(2), callbacks=[RunCheckpoint(3, dirpath=tmp_path / "ckpt")], **settings)
    resumed = fit(6, update=Update(2), ckpt_path=tmp_path / "ckpt" / "step=3.ckpt", **settings)
    timeless = lambda m: {k: v for k, v in m.items() if not k.startswith("throughput/")}  # noqa: E731
    assert [timeless(m) for m in resumed.history] == [timeless(m) for m in whole.history[3:]]
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())
    assert resumed.kl_coef.value == whole.kl_coef.value
    assert resumed.tokens_seen == whole.tokens_seen


def test_another_reference_is_refused_on_resuming(fit, tmp_path, policy_folder):
    fit(1, callbacks=[RunCheckpoint(1, dirpath=tmp_path / "ckpt")])
    checkpoint = torch.load(tmp_path / "ckpt" / "step=1.ckpt", weights_only=True)
    checkpoint["llm_lightning"]["reference"] = "another"
    torch.save(checkpoint, tmp_path / "ckpt" / "step=1.ckpt")
    with pytest.raises(UserError, match="had another reference policy"):
        fit(2, ckpt_path=tmp_path / "ckpt" / "step=1.ckpt")


def test_the_adapted_kl_coefficient_goes_up_where_the_policy_goes_too_far(fit):
    module = fit(8, kl=KLPenalty(0.001, target=0.01, horizon=40), lr=3e-3)
    coefs = [m["train/kl_coef"] for m in module.history]
    assert coefs[0] == 0.001
    assert coefs[-1] > coefs[3]


def test_weights_that_autocast_keeps_do_not_go_stale(fit):
    """Under bf16-mixed a forward pass without gradient comes first, and several optimizer steps follow it."""
    module = fit(2, update=Update(3), precision="bf16-mixed", lr=3e-3)
    assert module.history[0]["train/grad_norm"] > 0
    assert module.history[0]["train/update_kl"] > 1e-6


def test_what_adds_up_small_steps_is_exact_under_bf16_true(fit):
    module = fit(2, precision="bf16-true", advantages=Advantages(scale_rewards=True), batch_size=300)
    e = module.experiences[1]
    assert next(module.model.parameters()).dtype == torch.bfloat16
    assert {e.scores.dtype, e.logprobs.dtype, e.values.dtype, module.critic.head.weight.dtype} == {torch.float32}
    assert module.score_moments.dtype == torch.float64
    assert float(module.score_moments[0]) == 600
    assert module.history[1]["rollout/sampler_gap"] < 0.1


def test_validation_is_the_mean_reward_of_held_out_prompts(fit):
    rewards = {"a": Reward(share_of_a, 2.0), "length": Reward(lambda p, c, k: [len(x) for x in c], 0.0)}
    module = fit(1, rewards=rewards, val_batches=2)
    metrics = module.trainer.validate(module, module.trainer.datamodule, verbose=False)[0]
    assert metrics["val/reward"] == pytest.approx(2 * metrics["val/reward/a"], rel=1e-5)
    assert metrics["val/reward/length"] > 1
    again = module.trainer.validate(module, module.trainer.datamodule, verbose=False)[0]
    assert again == metrics


def test_the_policy_is_saved_for_transformers_alone(fit, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    module = fit(1)
    module.save_model(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = tokenizer("What is 3", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, module.model(ids).logits, atol=1e-5)
    assert tokenizer.eos_token_id in loaded.generation_config.eos_token_id
    assert not any("critic" in key for key in loaded.state_dict())


def test_a_step_that_is_not_finite_is_left_out_and_counted(fit):
    module = fit(1)
    before = weights(module)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    module.trainer.fit_loop.epoch_loop.manual_optimization.on_run_start()
    module.log_counters = lambda: None
    module.step.collect(loss=torch.tensor(1.0), tokens=torch.tensor(1.0))
    totals = module.step.reduce(gradient_norm(module.optimizers()), module.ranks, divided_by=1.0)
    module._optimizer_step(totals, is_first=False)
    assert module.step.num_skipped == 1
    assert all(torch.equal(value, weights(module)[name]) for name, value in before.items())


def test_guards_warn_or_stop(fit, capsys):
    module = fit(4, guards=Guards(max_kl=1e-4), lr=1e-2)
    assert capsys.readouterr().out.count("KL to the reference is") == 1
    assert module.num_updates == 4
    stopped = fit(4, guards=Guards("stop", min_entropy=100.0))
    assert stopped.num_updates == 1
    assert "raise model.kl.coef or model.update.entropy_coef" in capsys.readouterr().out


def test_a_frozen_reference_is_a_copy_of_what_was_read(fit, policy_folder):
    module = fit(2, lr=1e-2)
    frozen = module._reference[0].frozen
    original = Backbone(path=str(policy_folder)).build()
    for (name, a), b in zip(original.named_parameters(), frozen.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert not b.requires_grad
    assert not torch.equal(next(original.parameters()), next(module.model.parameters()))
    assert copy.deepcopy(frozen) is not None
