"""Keys and values in 8 bits: against transformers with its own cache rounded, and what they take."""

import pytest
import torch
from transformers import DynamicCache

from llm_lightning.errors import UserError
from llm_lightning.rollouts import Sampler, Sampling
from llm_lightning.rollouts.cache import Cache, Int8Cache
from llm_lightning.rollouts.slots import Slots, rollout_mode
from tests.llm_lightning.rollouts.test_sampler import EOS, NETWORKS, WITHOUT_SLOTS, keys_for, network_of, prompts

NAMES = ("llama", "mistral, sliding window", "gemma2, capped", "gpt-oss, sinks")


class RoundedCache(DynamicCache):
    """Remembers rounded keys and values; the prompt itself is read before it is rounded."""

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        is_prompt = self.get_seq_length(layer_idx) == 0
        rounded = super().update(*map(self.round, (key_states, value_states)), layer_idx, *args, **kwargs)
        return (key_states, value_states) if is_prompt else rounded

    @staticmethod
    def round(states):
        largest = states.abs().max(-1, keepdim=True).values
        return torch.round(states * 127 / largest) * largest / 127


@pytest.mark.parametrize("name", NAMES)
def test_attention_over_rounded_keys_and_values(name):
    network, (prompt, tokens) = network_of(NETWORKS[name]), prompts([30, 6])
    with rollout_mode(network), torch.no_grad():
        slots = Slots(network, "int8")
        states = [state for _, state in slots.admit([prompt], 1, 100)]
        states += [slots.append(token[None]) for token in tokens]
    reference = network_of(NETWORKS[name], attention="eager").eval()
    cache, found = RoundedCache(), []
    with torch.no_grad():
        for ids in (prompt, *(token[None] for token in tokens)):
            output = reference.get_decoder()(input_ids=ids[None], past_key_values=cache, use_cache=True)
            found.append(output.last_hidden_state[:, -1])
    torch.testing.assert_close(torch.cat(states), torch.cat(found), rtol=1e-4, atol=1e-4)


def test_slots_that_come_and_go_change_nothing():
    network, given = network_of(NETWORKS["llama"]), prompts()
    written = [
        Sampler(Sampling(max_new_tokens=80), [EOS], num_slots, kv_cache_dtype="int8").sample(
            network, given, keys_for(len(given))
        )
        for num_slots in (64, 3)
    ]
    for many, few in zip(*written, strict=True):
        assert torch.equal(many.tokens, few.tokens)
        torch.testing.assert_close(many.logprobs, few.logprobs, rtol=1e-4, atol=1e-4)


def test_the_probabilities_are_nearly_the_same_and_not_quite():
    network, given = network_of(NETWORKS["llama"]), prompts()
    sampling = Sampling(max_new_tokens=12)
    exact, rounded = (
        Sampler(sampling, [EOS], kv_cache_dtype=dtype).sample(network, given, keys_for(len(given)))
        for dtype in ("auto", "int8")
    )
    same = [(a, b) for a, b in zip(exact, rounded, strict=True) if torch.equal(a.tokens, b.tokens)]
    assert len(same) > len(given) / 2
    differences = torch.cat([a.logprobs - b.logprobs for a, b in same]).abs()
    assert 0 < differences.mean() < 0.05


def test_a_byte_a_number_and_a_scale_a_row():
    exact, rounded = Cache(), Int8Cache()
    for cache in (exact, rounded):
        cache.admit(0, torch.randn(5, 2, 7, 64), 64)
        cache.grow(128)
        cache.keep(torch.tensor([0, 3]), 128)
    assert exact.num_bytes == 2 * 2 * 128 * 64 * 4
    assert rounded.num_bytes == 2 * 2 * 128 * (64 + 4)


def test_a_network_without_slots_is_refused():
    network = network_of(WITHOUT_SLOTS["llama by sdpa"], attention="sdpa")
    with pytest.raises(UserError, match="kv_cache_dtype=int8"):
        Sampler(Sampling(max_new_tokens=2), [EOS], kv_cache_dtype="int8").sample(network, prompts(), keys_for(14))


def test_what_is_written_with_it_is_weighed():
    sampling = Sampling(max_new_tokens=2)
    assert Sampler(sampling, [EOS], kv_cache_dtype="int8").is_inexact and not Sampler(sampling, [EOS]).is_inexact
