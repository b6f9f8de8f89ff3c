import random

import pytest

from llm_lightning.errors import UserError
from llm_lightning.modules.ppo.guards import Guards, Watch, trend

FINE = {"train/kl": 1.0, "train/entropy": 2.0, "train/reward": 0.0}


def test_each_sign_is_told_once_and_again_when_it_comes_back():
    watch = Watch(Guards(max_kl=10.0, min_entropy=0.1))
    assert watch.look(FINE) == []
    (told,) = watch.look(FINE | {"train/kl": 11.0})
    assert "11.0 nats a completion (model.guards.max_kl=10.0)" in told
    assert watch.look(FINE | {"train/kl": 12.0}) == []
    assert watch.look(FINE) == []
    assert len(watch.look(FINE | {"train/kl": 12.0, "train/entropy": 0.05})) == 2


def climb(watch, slope):
    rng = random.Random(0)
    signs = []
    for step in range(20):
        noise = rng.gauss(0, 0.05)
        rewards = {"train/reward": 0.1 * step + noise, "reward/gold": slope * step + noise}
        signs += watch.look(FINE | rewards)
    return signs


def test_a_held_out_reward_that_falls_while_the_reward_rises():
    guards = Guards(held_out="gold", window=10)
    assert climb(Watch(guards), 0.1) == []
    assert climb(Watch(guards), 0.0) == []
    assert climb(Watch(guards), -0.1) == [
        "over 10 updates the reward rose and 'gold' fell: the policy exploits the reward."
    ]


def test_its_memory_goes_on():
    whole, first, second = (Watch(Guards(held_out="gold", window=4)) for _ in range(3))
    metrics = [FINE | {"train/reward": float(i), "reward/gold": -float(i)} for i in range(6)]
    told = [whole.look(m) for m in metrics]
    begun = [first.look(m) for m in metrics[:2]]
    second.load_state_dict(first.state_dict())
    assert begun + [second.look(m) for m in metrics[2:]] == told
    assert any(told)


def test_chance_is_no_trend():
    assert trend([0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0]) == 0
    assert trend([0.0, 0.1, 0.0, 0.1, 1.0, 1.1, 1.0, 1.1]) == 1
    assert trend([1.0] * 4 + [0.5] * 4) == -1
    assert trend([1.0] * 8) == 0


def test_a_held_out_reward_must_not_be_trained_on():
    with pytest.raises(UserError, match=r"must name a reward of weight 0 \(there are: none\)"):
        Guards(held_out="gold").check({"gold": 1.0})
    Guards(held_out="gold").check({"gold": 0.0})
