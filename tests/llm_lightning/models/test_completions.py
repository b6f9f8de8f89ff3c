"""Logprobs, entropies and values of packed completions against plain forward passes."""

import pytest
import torch

from llm_lightning.models.backbone import Backbone
from llm_lightning.models.completions import (
    Critic,
    bounded_groups,
    completion_states,
    pack_completions,
    states_and_logprobs,
)
from tests.llm_lightning.conftest import VOCAB, tiny_config

LENGTHS = [(3, 5), (1, 1), (20, 9), (7, 30)]


def pairs():
    g = torch.Generator().manual_seed(2)
    return [tuple(torch.randint(1, VOCAB, (n,), generator=g) for n in both) for both in LENGTHS]


def plain(network, temperature=0.7):
    """Of each completion's tokens, one sequence at a time, in float64: logprobs, entropies, hidden states."""
    logprobs, entropies, states = [], [], []
    for prompt, completion in pairs():
        output = network(torch.cat([prompt, completion])[None], output_hidden_states=True)
        p = (output.logits[0].double() / temperature).softmax(-1)[len(prompt) - 1 : -1]
        logprobs += [row[token].log() for row, token in zip(p, completion, strict=True)]
        entropies += [-(row * row.log()).sum() for row in p]
        states.append(output.hidden_states[-1][0, len(prompt) - 1 : -1])
    return torch.stack(logprobs), torch.stack(entropies), torch.cat(states)


def packed_pairs():
    return pack_completions(*map(list, zip(*pairs(), strict=True)), torch.device("cpu"))


@pytest.mark.parametrize("attention", [Backbone.attention, "sdpa"])
def test_logprobs_entropies_and_their_gradients(monkeypatch, attention):
    torch.manual_seed(0)
    network = Backbone(config=tiny_config(), attention=attention).build()
    monkeypatch.setattr("llm_lightning.objectives.language.chunk_length", lambda *_: 16)  # several chunks
    packed = packed_pairs()
    assert packed.batch["input_ids"].shape == (1, 128)
    states, got = states_and_logprobs(network, packed, 0.7)
    logprobs, entropies, expected_states = plain(network)
    assert torch.allclose(states, expected_states, atol=1e-5)
    assert torch.allclose(got.logprobs.double(), logprobs, atol=1e-5)
    assert torch.allclose(got.entropies.double(), entropies, atol=1e-5)
    weights = torch.linspace(-1, 2, len(logprobs))
    parameters = list(network.parameters())
    ours = torch.autograd.grad((weights * (got.logprobs + 0.3 * got.entropies)).sum(), parameters)
    theirs = torch.autograd.grad((weights * (logprobs + 0.3 * entropies)).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=2e-4, rtol=1e-4)


def test_entropies_only_where_they_are_asked_for(network):
    packed = packed_pairs()
    _, with_them = states_and_logprobs(network, packed, 1.0)
    _, without = states_and_logprobs(network, packed, 1.0, with_entropies=False)
    assert torch.equal(with_them.logprobs, without.logprobs)
    assert not without.entropies.any()


def test_what_shares_a_row_does_not_matter(network):
    one_by_one = []
    for prompt, completion in pairs():
        packed = pack_completions([prompt], [completion], torch.device("cpu"))
        one_by_one.append(completion_states(network, packed))
    assert torch.allclose(torch.cat(one_by_one), completion_states(network, packed_pairs()), atol=1e-5)


def test_a_critic_starts_at_zero_and_learns_through_the_trunk(network):
    packed = packed_pairs()
    critic = Critic(32)
    states = completion_states(network, packed)
    values = critic(packed, states)
    assert values.dtype == torch.float32
    assert not values.any()
    torch.nn.init.ones_(critic.head.weight)
    critic(packed, states).sum().backward()
    assert network.get_input_embeddings().weight.grad.abs().sum() > 0
    assert torch.allclose(critic.head.weight.grad[0], states.sum(0), atol=1e-4)


def test_a_critic_of_its_own_reads_its_own_network(network):
    torch.manual_seed(9)
    other = Backbone(config=tiny_config()).build()
    critic = Critic(32, other)
    torch.nn.init.normal_(critic.head.weight)
    packed = packed_pairs()
    values = critic(packed, completion_states(network, packed))
    expected = completion_states(other, packed) @ critic.head.weight[0]
    assert torch.allclose(values, expected, atol=1e-5)
    values.sum().backward()
    assert all(p.grad is None for p in network.parameters())
    assert all(p.grad is not None for p in critic.parameters())


def test_groups_are_bounded_consecutive_and_whole():
    lengths = [5, 5, 1, 20, 3, 3, 3]
    groups = list(bounded_groups(lengths, 10))
    assert groups == [[0, 1], [2], [3], [4, 5, 6]]
    assert list(bounded_groups([], 10)) == []
