"""Each formula against plain float64 loops, written from the papers and not from the code."""

import math
import random

import pytest
import torch

from llm_lightning.objectives import policy

LENGTHS = [5, 1, 3, 7, 7]
R = 7


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(3)
    shape = (len(LENGTHS), R)
    mask = torch.arange(R) < torch.tensor(LENGTHS)[:, None]
    values = torch.randn(shape, generator=g, dtype=torch.float64)
    rewards = torch.randn(shape, generator=g, dtype=torch.float64)
    # What lies on padding must not matter at all.
    return {"mask": mask, "values": values.where(mask, 1e6), "rewards": rewards.where(mask, -1e6)}


def drawn_kl(p: list[float], q: list[float], estimator: str) -> float:
    """The expectation of the estimator over tokens drawn from p."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        one = policy.kl_estimate(*torch.tensor([[a], [b]], dtype=torch.float64).log(), estimator)
        total += a * float(one)
    return total


def test_kl_estimators():
    p, q = [0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.4, 0.1]
    exact = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert drawn_kl(p, q, "k1") == pytest.approx(exact, rel=1e-12)
    assert drawn_kl(p, q, "k3") == pytest.approx(exact, rel=1e-12)
    assert drawn_kl(p, q, "k2") == pytest.approx(sum(a * math.log(a / b) ** 2 / 2 for a, b in zip(p, q, strict=True)))
    logprobs, ref = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)).double().unbind()
    assert (policy.kl_estimate(logprobs, ref, "k3") >= 0).all()
    assert (policy.kl_estimate(logprobs, ref, "k1") < 0).any()


def test_k3_keeps_small_differences_in_float32():
    ref = torch.tensor([-1.0, -2.0])
    logprobs = ref + 1e-4
    assert policy.kl_estimate(logprobs, ref, "k3").tolist() == pytest.approx([5e-9, 5e-9], rel=0.1)


def test_controller():
    assert policy.adapted_kl_coef(0.1, kl=6.0, target=6.0, num_samples=64, horizon=10_000) == 0.1
    assert policy.adapted_kl_coef(0.1, 60.0, 6.0, 64, 10_000) == pytest.approx(0.1 * (1 + 0.2 * 0.0064))
    assert policy.adapted_kl_coef(0.1, 0.0, 6.0, 64, 10_000) == pytest.approx(0.1 * (1 - 0.2 * 0.0064))
    assert policy.adapted_kl_coef(0.1, 6.6, 6.0, 64, 10_000) == pytest.approx(0.1 * (1 + 0.1 * 0.0064))


def test_the_score_is_on_the_last_real_token(batch):
    penalties = torch.full((len(LENGTHS), R), 0.25, dtype=torch.float64).where(batch["mask"], math.nan)
    scores = torch.arange(1.0, 6.0, dtype=torch.float64)
    rewards = policy.token_rewards(scores, penalties, batch["mask"])
    for row, length in enumerate(LENGTHS):
        expected = [-0.25] * length + [0.0] * (R - length)
        expected[length - 1] += row + 1
        assert rewards[row].tolist() == expected


def test_an_answer_without_a_token_has_no_reward():
    mask = torch.tensor([[False, False], [True, False]])
    rewards = policy.token_rewards(torch.tensor([5.0, 7.0]), torch.zeros(2, 2), mask)
    assert rewards.tolist() == [[0.0, 0.0], [7.0, 0.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.97, 0.9), (1.0, 1.0), (0.9, 0.0)])
def test_generalized_advantages(batch, gamma, lam):
    advantages, returns = policy.generalized_advantages(**batch, gamma=gamma, lam=lam)
    for row, length in enumerate(LENGTHS):
        v, r = [*batch["values"][row].tolist()[:length], 0.0], batch["rewards"][row].tolist()
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        # The definition as a sum (equation 16), not the recursion.
        for t in range(length):
            expected = sum((gamma * lam) ** k * deltas[t + k] for k in range(length - t))
            assert float(advantages[row, t]) == pytest.approx(expected, abs=1e-12)
            assert float(returns[row, t]) == pytest.approx(expected + v[t], abs=1e-12)
        assert not advantages[row, length:].any()
        assert not returns[row, length:].any()


def test_with_lambda_one_the_return_is_the_discounted_sum_of_rewards(batch):
    _, returns = policy.generalized_advantages(**batch, gamma=0.9, lam=1.0)
    r = batch["rewards"][3].tolist()
    assert float(returns[3, 2]) == pytest.approx(sum(0.9**k * r[2 + k] for k in range(5)), abs=1e-12)


def test_group_advantages():
    scores = [1.0, 0.0, 0.0, 3.0, 2.0, 2.0, 2.0, 2.0]
    tensor = torch.tensor(scores, dtype=torch.float64)
    rloo = policy.group_advantages(tensor, 4, "rloo").tolist()
    grpo = policy.group_advantages(tensor, 4, "grpo").tolist()
    dr_grpo = policy.group_advantages(tensor, 4, "dr_grpo").tolist()
    for i, score in enumerate(scores):
        group = scores[i // 4 * 4 : i // 4 * 4 + 4]
        others = [x for j, x in enumerate(group) if j != i % 4]
        assert rloo[i] == pytest.approx(score - sum(others) / 3, abs=1e-12)
        mean = sum(group) / 4
        std = math.sqrt(sum((x - mean) ** 2 for x in group) / 3)
        assert grpo[i] == pytest.approx((score - mean) / (std + 1e-4), abs=1e-12)
        assert dr_grpo[i] == pytest.approx(score - mean, abs=1e-12)
    assert grpo[4:] == [0.0] * 4


def test_whitening_over_ranks_is_whitening_of_the_whole():
    whole = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 3 + 100
    first, second = whole[:300], whole[300:]
    sums = policy.moments(first) + policy.moments(second)
    got = torch.cat([policy.whiten(first, sums), policy.whiten(second, sums)])
    x = [float(v) for v in whole]
    mean = math.fsum(x) / len(x)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in x) / len(x))
    assert got.dtype == torch.float32
    assert got.tolist() == pytest.approx([(v - mean) / std for v in x], abs=1e-5)


def test_whitening_equal_values_is_finite():
    same = torch.full((4,), 2.5)
    assert policy.whiten(same, policy.moments(same)).tolist() == [0.0] * 4
    assert policy.moments(torch.empty(0)).tolist() == [0, 0, 0]


def test_policy_loss():
    rng = random.Random(5)
    new = [rng.uniform(-3, 0) for _ in range(200)]
    old = [x + rng.uniform(-0.6, 0.6) for x in new]
    advantages = [rng.gauss(0, 1) for _ in new]
    args = [torch.tensor(x, dtype=torch.float64, requires_grad=i == 0) for i, x in enumerate([new, old, advantages])]
    got = policy.policy_loss(*args, clip_range=0.2)
    got.loss.sum().backward()
    clips = 0
    for i, (a, b, advantage) in enumerate(zip(new, old, advantages, strict=True)):
        ratio = math.exp(a - b)
        surrogate = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
        is_clipped = (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8)
        clips += is_clipped
        assert float(got.loss[i].detach()) == pytest.approx(-surrogate, abs=1e-12)
        assert bool(got.is_clipped[i]) is is_clipped
        assert float(args[0].grad[i]) == pytest.approx(0.0 if is_clipped else -ratio * advantage, abs=1e-12)
        assert float(got.kl[i]) == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-12)
    assert 20 < clips < 150


def drawn(seed, lengths):
    """Logprobs now and before, and an advantage for each completion."""
    rng = random.Random(seed)
    new = [rng.uniform(-3, 0) for _ in range(sum(lengths))]
    old = [x + rng.uniform(-0.6, 0.6) for x in new]
    of_completions = [rng.gauss(0, 1) for _ in lengths]
    advantages = [a for a, length in zip(of_completions, lengths, strict=True) for _ in range(length)]
    return new, old, advantages


def test_the_clip_may_be_higher_above_than_below():
    new, old, advantages = drawn(7, [200])
    args = [torch.tensor(x, dtype=torch.float64, requires_grad=i == 0) for i, x in enumerate([new, old, advantages])]
    got = policy.policy_loss(*args, clip_range=0.2, clip_range_high=0.5)
    for i, (a, b, advantage) in enumerate(zip(new, old, advantages, strict=True)):
        ratio = math.exp(a - b)
        surrogate = min(ratio * advantage, min(max(ratio, 0.8), 1.5) * advantage)
        assert float(got.loss[i].detach()) == pytest.approx(-surrogate, abs=1e-12)


def test_the_ratio_of_a_sequence_is_the_geometric_mean_of_its_tokens():
    """GSPO, equations 5 to 7 and the gradient of the paper's equation 10, by loops over completions."""
    lengths = [3, 1, 0, 5, 2]
    new, old, advantages = drawn(8, lengths)
    args = [torch.tensor(x, dtype=torch.float64, requires_grad=i == 0) for i, x in enumerate([new, old, advantages])]
    got = policy.policy_loss(*args, clip_range=0.1, lengths=torch.tensor(lengths))
    weights = policy.token_weights(torch.tensor(lengths), "completions", 8)
    (got.loss * weights).sum().backward()
    start = 0
    for length in lengths:
        tokens = range(start, start + length)
        start += length
        if not length:
            continue
        ratio = math.exp(sum(new[t] - old[t] for t in tokens) / length)
        advantage = advantages[tokens[0]]
        surrogate = min(ratio * advantage, min(max(ratio, 0.9), 1.1) * advantage)
        is_clipped = (advantage > 0 and ratio > 1.1) or (advantage < 0 and ratio < 0.9)
        for t in tokens:
            assert float(got.loss[t].detach()) == pytest.approx(-surrogate, abs=1e-12)
            slope = 0.0 if is_clipped else -ratio * advantage / length
            assert float(args[0].grad[t]) == pytest.approx(slope, abs=1e-7)  # the weights are float32
            assert float(got.kl[t]) == pytest.approx(math.exp(new[t] - old[t]) - 1 - (new[t] - old[t]), abs=1e-12)


@pytest.mark.parametrize(
    ("average", "expected"),
    [("tokens", [1, 1, 1, 1, 1, 1]), ("completions", [1 / 2] * 2 + [1 / 4] * 4), ("constant", [1 / 8] * 6)],
)
def test_what_a_token_counts(average, expected):
    assert policy.token_weights(torch.tensor([2, 0, 4]), average, 8).tolist() == pytest.approx(expected)


def test_at_the_first_update_the_gradient_is_the_policy_gradient():
    logprobs = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([0.5, -3.0], dtype=torch.float64)
    got = policy.policy_loss(logprobs, logprobs.detach(), advantages, 0.2)
    got.loss.sum().backward()
    assert logprobs.grad.tolist() == [-0.5, 3.0]
    assert not got.is_clipped.any()
    assert not got.kl.any()


def test_value_loss():
    rng = random.Random(6)
    values, old, returns = ([rng.gauss(0, 1) for _ in range(200)] for _ in range(3))
    args = [torch.tensor(x, dtype=torch.float64) for x in (values, old, returns)]
    got = policy.value_loss(*args, clip_range=0.2).tolist()
    for v, o, target, loss in zip(values, old, returns, got, strict=True):
        bounded = o + min(max(v - o, -0.2), 0.2)
        assert loss == pytest.approx(max((v - target) ** 2, (bounded - target) ** 2) / 2, abs=1e-12)


def test_explained_variance():
    returns = torch.tensor([1.0, 2.0, 3.0, 6.0])
    share = [policy.explained_variance(policy.moments(returns - v), policy.moments(returns))
             for v in (returns, torch.zeros(4), returns / 2, -returns)]  # fmt: skip
    assert share == pytest.approx([1.0, 0.0, 0.75, -3.0])
    constant = policy.moments(torch.ones(4))
    assert policy.explained_variance(policy.moments(torch.zeros(4)), constant) == 0.0


def test_importance_weights_are_cut_off_and_unknown_ones_are_one():
    own, drawn = [-1.0, -2.0, -0.5, -3.0], [-1.5, -1.0, -4.0, math.nan]
    args = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (own, drawn)]
    weights = policy.importance_weights(*args, cap=2.0)
    assert weights.tolist() == pytest.approx([math.exp(0.5), math.exp(-1.0), 2.0, 1.0], rel=1e-12)
    assert not weights.requires_grad


def test_importance_weights_make_the_gradient_that_of_the_trained_policy():
    """Over all tokens, as often as the sampler draws them: what is expected of a sum with weights is the policy's."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    other, advantages = torch.tensor([0.1, 0.4, 0.2]).double(), torch.tensor([1.0, -2.0, 0.5]).double()
    own, drawn = logits.log_softmax(-1), other.log_softmax(-1)
    weights = policy.importance_weights(own, drawn, cap=100.0)
    loss = (drawn.exp() * weights * policy.policy_loss(own, own.detach(), advantages, 0.2).loss).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad(-(logits.softmax(-1) * advantages).sum(), logits)
    assert torch.allclose(gradient, expected, atol=1e-12)
