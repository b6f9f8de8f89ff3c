"""Groups of equal scores are drawn again: which completions a step then has, what is logged, and that it resumes."""

from dataclasses import replace

import pytest
import torch

from callbacks import RunCheckpoint
from llm_lightning.errors import UserError
from llm_lightning.modules.ppo.resampling import equal_groups, resample
from llm_lightning.modules.ppo.settings import Advantages, KLPenalty, Rollout, Update
from llm_lightning.rewards import Reward
from llm_lightning.rollouts import Sampling
from tests.llm_lightning.modules.ppo_fits import Recorder

ROLLOUT = Rollout(Sampling(4), num_samples=3, missing_eos_penalty=0.0)
SETTINGS = {"advantages": Advantages("dr_grpo"), "kl": KLPenalty(0.0), "update": Update(epochs=1), "batch_size": 8}


def has_a(prompts, completions, columns):
    """Seldom: most groups have none."""
    return [float("a" in text) for text in completions]


class Keeping(Recorder):
    """Keeps each step's batch."""

    def training_step(self, batch, batch_idx):
        self.batches = [*getattr(self, "batches", []), batch]
        super().training_step(batch, batch_idx)


def expected(module, batch, step, most):
    """By hand, prompt by prompt: the first draw whose scores differ, and the first of all where there is none."""
    written = []
    for place in range(len(batch["prompts"])):
        ids, mask = batch["prompt_ids"][place], batch["attention_mask"][place].bool()
        draws = []
        for number in range(most + 1):
            samples = range(3 * number, 3 * number + 3)
            keys = [[(module.rollout_settings.seed, step, place, sample) for sample in samples]]
            draws.append([one.tokens.tolist() for one in module.engine.sample(module.model, [ids[mask].cpu()], keys)])
        scores = [[float("a" in module.tokenizer.decode(t, skip_special_tokens=True)) for t in d] for d in draws]
        mixed = [draw for draw, given in zip(draws, scores, strict=True) if len(set(given)) > 1]
        written += mixed[0] if mixed else draws[0]
    return written


def test_a_step_has_the_first_draw_of_each_prompt_whose_scores_differ(fit):
    given = SETTINGS | {"rewards": {"a": Reward(has_a)}, "lr": 0.0, "kind": Keeping}
    module = fit(2, rollout=replace(ROLLOUT, max_resamples=3), **given)
    once = fit(2, rollout=ROLLOUT, **given)
    for step in (0, 1):
        e = module.experiences[step]
        assert [one.tokens.tolist() for one in e.completions] == expected(module, module.batches[step], step, 3)
        # In float64, from the texts: what dr_grpo learns from.
        texts = [module.tokenizer.decode(one.tokens, skip_special_tokens=True) for one in e.completions]
        scores = torch.tensor([float("a" in text) for text in texts], dtype=torch.float64).view(-1, 3)
        advantages = (scores - scores.mean(1, keepdim=True)).flatten()
        assert torch.allclose(e.advantages.double(), advantages[:, None] * e.mask, atol=1e-7)
        metrics, before = module.history[step], once.history[step]
        left = (scores.amax(1) == scores.amin(1)).double().mean()
        assert metrics["rollout/equal_groups"] == pytest.approx(float(left)) and 0 < left < 1
        assert metrics["rollout/resampled_groups"] == pytest.approx(before["rollout/equal_groups"] - float(left))
        assert metrics["rollout/resampled_groups"] > 0
        # The reward that is logged is that of the first draw, which nothing was chosen from.
        assert metrics["train/reward"] == before["train/reward"] < float(scores.mean())


def test_a_resumed_run_is_the_uninterrupted_one(fit, tmp_path):
    given = SETTINGS | {"rewards": {"a": Reward(has_a)}, "rollout": replace(ROLLOUT, max_resamples=2), "lr": 3e-3}
    whole = fit(4, **given)
    fit(2, callbacks=[RunCheckpoint(2, dirpath=tmp_path / "ckpt")], **given)
    resumed = fit(4, ckpt_path=tmp_path / "ckpt" / "step=2.ckpt", **given)
    timeless = lambda m: {k: v for k, v in m.items() if not k.startswith("throughput/")}  # noqa: E731
    assert [timeless(m) for m in resumed.history] == [timeless(m) for m in whole.history[2:]]
    weights = resumed.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.state_dict().items())


def test_where_all_groups_differ_or_none_may_be_drawn_again_nothing_is_written(fit):
    def differs(prompts, completions, columns):
        return [float(number) for number in range(len(completions))]

    module = fit(1, rewards={"d": Reward(differs)}, rollout=replace(ROLLOUT, max_resamples=5), **SETTINGS)
    assert module.history[0]["rollout/resampled_groups"] == 0 == module.history[0]["rollout/equal_groups"]

    def draw(part, keys, first):
        raise AssertionError

    judged = type("Scored", (), {"scores": torch.zeros(6)})()
    assert resample(draw, {}, [(1,), (2,)], [None] * 6, judged, 0, int)[2] == 0


def test_a_rank_without_equal_groups_draws_along_for_nothing():
    """Where weights are gathered, every rank has to take part in every draw."""
    drawn = []

    def draw(part, keys, first):
        drawn.append((list(keys), first, len(part["prompt_ids"])))
        return [], type("Scored", (), {"scores": torch.zeros(0)})()

    batch = {
        "prompts": ["p"],
        "columns": {"c": [1]},
        "prompt_ids": torch.ones(1, 2),
        "attention_mask": torch.ones(1, 2),
    }
    judged = type("Scored", (), {"scores": torch.tensor([0.0, 1.0])})()
    others = iter([3, 1, 0])
    assert resample(draw, batch, [(1,)], [None] * 2, judged, 5, lambda count: count + next(others))[2] == 0
    assert drawn == [([], 2, 0), ([], 4, 0)]


def test_equal_groups_are_those_without_any_difference():
    assert equal_groups(torch.tensor([1.0, 1.0, 0.0, 1.0, 0.5, 0.5]), 2) == [0, 2]
    assert equal_groups(torch.zeros(0), 2) == []


def test_a_critic_needs_no_other_draw(fit):
    with pytest.raises(UserError, match=r"model\.rollout\.max_resamples=2 .* goes with model\.advantages\.kind=grpo"):
        fit(1, rollout=replace(ROLLOUT, max_resamples=2))
    with pytest.raises(UserError, match=r"model\.rollout\.max_resamples=-1 must be at least 0"):
        fit(1, rollout=replace(ROLLOUT, max_resamples=-1), **SETTINGS)
