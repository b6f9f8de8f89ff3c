"""The draw itself: distribution, truncation, edges."""

import math

import pytest
import torch
from scipy import stats

from llm_lightning.errors import UserError
from llm_lightning.rollouts.sampling import HIGHEST_UNIFORM, Sampling, draw, uniforms

LOGITS = [2.0, 0.5, -1.0, 1.0, -math.inf, 0.0]


def exact(temperature: float = 1.0) -> list[float]:
    weights = [math.exp(x / temperature) for x in LOGITS]
    return [w / sum(weights) for w in weights]


def drawn(sampling: Sampling, count: int = 60_000) -> list[float]:
    """Shares of the tokens over an even grid of uniforms, which leaves no chance in the test."""
    grid = (torch.arange(count) + 0.5) / count
    tokens, _ = draw(torch.tensor([LOGITS]).expand(count, -1), grid, sampling)
    return (torch.bincount(tokens, minlength=len(LOGITS)) / count).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_in_their_probabilities(temperature):
    assert drawn(Sampling(temperature=temperature)) == pytest.approx(exact(temperature), abs=1e-4)


def test_truncation_keeps_the_likeliest_and_their_proportions():
    p = exact()
    kept = p[0] + p[3]
    expected = [p[0] / kept, 0, 0, p[3] / kept, 0, 0]
    assert drawn(Sampling(top_k=2)) == pytest.approx(expected, abs=0.006)  # noise by a hash: three standard errors
    # 0.56 and 0.21 are the likeliest: the first alone is less than 0.6, both are more.
    assert drawn(Sampling(top_p=0.6)) == pytest.approx(expected, abs=0.006)
    assert drawn(Sampling(top_p=0.5)) == [1, 0, 0, 0, 0, 0]
    assert drawn(Sampling(top_k=1000)) == pytest.approx(p, abs=0.006)
    # Of the two that top-k leaves, the first has more than 0.7.
    assert drawn(Sampling(top_k=2, top_p=0.7)) == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.95, 0.999])
def test_top_p_of_a_large_vocabulary_is_that_of_its_whole_order(top_p):
    """Flat and peaked rows together: of some a few tokens are enough, of others thousands."""
    generator = torch.Generator().manual_seed(0)
    sharpness = torch.tensor([0.1, 0.3, 1.0, 2.0, 4.0, 8.0]).repeat(20)[:, None]
    logits = sharpness * torch.randn(120, 20_000, generator=generator)
    uniform = torch.rand(120, generator=generator).clamp(max=HIGHEST_UNIFORM)
    tokens, _ = draw(logits, uniform, Sampling(top_p=top_p))
    ordered, indices = logits.double().softmax(-1).sort(descending=True)
    ordered = ordered.where(ordered.cumsum(-1) - ordered < top_p, 0.0)
    cumulative = ordered.cumsum(-1)
    place = (indices == tokens[:, None]).nonzero()[:, 1:]
    # The token is one of those that are kept, up to float32's rounding, which can move the last one in or out.
    assert ((cumulative - ordered).gather(1, place) <= top_p * (1 + 1e-5)).all()
    assert (ordered.gather(1, place) > 0).float().mean() > 0.99


@pytest.mark.parametrize("sampling", [Sampling(top_p=0.9), Sampling(top_k=40), Sampling(temperature=1.5, top_k=300)])
def test_truncated_draws_come_in_their_probabilities(sampling):
    """A chi-square test over random numbers as completions have them."""
    generator = torch.Generator().manual_seed(3)
    logits, count = 1.5 * torch.randn(500, generator=generator), 40_000
    uniform = uniforms([(5, number) for number in range(count // 100)], 100).flatten()
    tokens, _ = draw(logits.expand(count, -1), uniform, sampling)
    ordered, indices = (logits.double() / sampling.temperature).softmax(-1).sort(descending=True)
    if sampling.top_k:
        ordered[sampling.top_k :] = 0
    ordered[ordered.cumsum(0) - ordered >= sampling.top_p * ordered.sum()] = 0
    expected = torch.zeros(500).double().scatter(0, indices, ordered / ordered.sum()).numpy()
    found = torch.bincount(tokens, minlength=500).numpy()
    assert (found[expected == 0] == 0).all()
    kept = expected > 0
    assert stats.chisquare(found[kept], expected[kept] * count).pvalue > 0.01


def test_draws_of_two_rows_and_of_two_tokens_are_independent():
    """Pairs of draws at neighbouring positions, from two distributions that share no order."""
    count, logits = 40_000, torch.tensor([0.0, 0.5, -0.5, 1.0])
    first, second = uniforms([(6, number) for number in range(count // 10)], 20).reshape(-1, 2).T.contiguous()
    one, _ = draw(logits.expand(count, -1), first, Sampling(top_k=4))
    other, _ = draw(logits.expand(count, -1), second, Sampling(top_k=4))
    table = torch.bincount(one * 4 + other, minlength=16).reshape(4, 4).numpy()
    assert stats.chi2_contingency(table).pvalue > 0.01


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=0.95), Sampling(top_k=50)])
def test_rounding_changes_no_token(sampling):
    """Logits that are nearly even, so that their order changes with the last bits."""
    generator = torch.Generator().manual_seed(4)
    logits = 1e-4 * torch.randn(4000, 200, generator=generator)
    uniform = torch.rand(4000, generator=generator).clamp(max=HIGHEST_UNIFORM)
    other = logits + 1e-6 * torch.randn(4000, 200, generator=generator)
    assert (logits.argsort(1) != other.argsort(1)).any(1).float().mean() > 0.9
    tokens, again = draw(logits, uniform, sampling)[0], draw(other, uniform, sampling)[0]
    assert (tokens != again).float().mean() < 0.02


def test_nearly_the_same_distribution_draws_nearly_the_same_tokens():
    """(1 - d) / (1 + d) of them at least, where d is the distance of the two in total variation (arXiv:2408.07978)."""
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(500, generator=generator)
    other = logits + 0.3 * torch.randn(500, generator=generator)
    uniform = torch.rand(20_000, generator=generator).clamp(max=HIGHEST_UNIFORM)
    sampling = Sampling(top_k=500)
    agreed = (
        draw(logits.expand(20_000, -1), uniform, sampling)[0] == draw(other.expand(20_000, -1), uniform, sampling)[0]
    )
    distance = float((logits.softmax(-1) - other.softmax(-1)).abs().sum() / 2)
    assert 1 - distance + 0.01 > float(agreed.float().mean()) > (1 - distance) / (1 + distance) - 0.01
    assert distance > 0.1


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_logprobs_are_of_the_whole_distribution_at_the_temperature(settings):
    tokens, logprobs = draw(
        torch.tensor([LOGITS] * 9), torch.linspace(0, 0.99, 9), Sampling(temperature=0.7, **settings)
    )
    assert logprobs.exp().tolist() == pytest.approx([exact(0.7)[t] for t in tokens.tolist()], rel=1e-5)


def test_no_temperature_is_the_likeliest_token():
    tokens, logprobs = draw(torch.tensor([LOGITS, LOGITS[::-1]]), torch.tensor([0.99, 0.99]), Sampling(temperature=0))
    assert tokens.tolist() == [0, 5]
    assert logprobs.exp().tolist() == pytest.approx([exact()[0]] * 2)


def test_the_ends_of_the_range_never_hit_an_impossible_token():
    impossible_first = torch.tensor([[-math.inf, 1.0, 2.0, -math.inf]])
    for uniform in (0.0, HIGHEST_UNIFORM):
        token, logprob = draw(impossible_first, torch.tensor([uniform]), Sampling())
        assert int(token) in (1, 2)
        assert math.isfinite(float(logprob))
    # The largest float64 below 1 rounds to 1 in float32, which would be beyond the last token.
    assert float(torch.tensor([1 - 2.0**-53])) == 1.0
    many = torch.randn(200, 49_152, generator=torch.Generator().manual_seed(0))
    many[:, -100:] = -math.inf
    assert draw(many, torch.full((200,), HIGHEST_UNIFORM), Sampling())[0].max() < 49_052


def test_random_numbers_depend_on_their_key_alone():
    table = uniforms([(1, 2, 3), (1, 2, 4), (1, 3, 3)], 50)
    assert torch.equal(uniforms([(1, 2, 4)], 20)[0], table[1, :20])
    assert len({tuple(row) for row in table.tolist()}) == 3
    assert ((table >= 0) & (table <= HIGHEST_UNIFORM)).all()
    many = uniforms([(7, i) for i in range(500)], 40)
    assert float(many.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(many.var()) == pytest.approx(1 / 12, abs=0.003)


@pytest.mark.parametrize(
    "settings", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_settings_that_cannot_work_are_named(settings):
    ((name, value),) = settings.items()
    with pytest.raises(UserError, match=rf"model\.sampling\.{name}={value} must be"):
        Sampling(**settings).check("model.sampling")
