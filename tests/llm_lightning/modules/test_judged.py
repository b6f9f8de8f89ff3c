"""GRPO on a tiny policy whose only reward is a judge behind an endpoint."""

import pytest

from llm_lightning.modules.ppo.settings import Advantages, KLPenalty, Rollout, Update
from llm_lightning.rewards import Reward, Rubric
from llm_lightning.rollouts import Sampling
from tests.chat_server import ChatServer
from tests.llm_lightning.modules.ppo_fits import share_of_a
from tests.llm_lightning.rewards.judge.judges import by_rule, judge_of


@pytest.mark.parametrize("comparison", ["pointwise", pytest.param("pairwise", marks=pytest.mark.slow)])
def test_it_learns_what_the_judge_likes(fit, comparison):
    with ChatServer().running() as server:
        server.answer = by_rule(lambda text: 9 * share_of_a([], [text], {})[0])
        judge = judge_of(server.url, None, comparison=comparison, rubric=Rubric(["It is made of a, b, c, d and e."]))
        rewards = {"liked": Reward(judge), "held_out": Reward(share_of_a, 0.0)}
        module = fit(
            12, advantages=Advantages("grpo"), lr=4e-3, rollout=Rollout(Sampling(6), 4), batch_size=4,
            kl=KLPenalty(0.0), update=Update(epochs=2), rewards=rewards,
        )  # fmt: skip
        judge.engine.release()
    first, last = (sum(m["reward/held_out"] for m in part) / 3 for part in (module.history[:3], module.history[-3:]))
    assert last > first + 0.12, (first, last)
    assert all(m["reward/liked/unreadable"] == 0 for m in module.history)
