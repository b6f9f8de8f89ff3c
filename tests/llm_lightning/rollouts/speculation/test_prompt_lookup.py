"""Guesses from the text itself, and whether they pay."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from llm_lightning.errors import UserError
from llm_lightning.rollouts import PromptLookup, Sampler, Sampling
from llm_lightning.rollouts.speculation.prompt_lookup import continuation
from tests.llm_lightning.rollouts.speculation.test_speculation import counting, same
from tests.llm_lightning.rollouts.test_sampler import COMMON, EOS, SIZES, keys_for, network_of, prompts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], (3, [4, 5, 1, 2])),
        ([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], (3, [4, 9, 2, 3])),  # the longest match, though not the latest one
        ([2, 3, 4, 2, 3, 5, 9, 2, 3], (2, [5, 9, 2, 3])),  # of those as long the latest
        ([7, 3, 4, 8, 3], (1, [4, 8, 3, 4])),  # what goes beyond the end is a loop
        ([5, 5, 5], (2, [5, 5, 5, 5])),
        ([1, 2, 3], (0, [])),
        ([1], (0, [])),
    ],
)
def test_what_followed_the_last_tokens(text, expected):
    assert continuation(np.array(text), 3, 4) == expected


def test_no_guess_where_there_is_no_room():
    assert continuation(np.array([1, 2, 1]), 3, 0) == (0, [])


def looping():
    """A network whose greedy texts fall into loops."""
    torch.manual_seed(2)
    return network_of(LlamaConfig(**(COMMON | {"initializer_range": 0.05}), **SIZES))


def test_texts_that_repeat_take_fewer_passes_and_others_no_more_tokens():
    asked, sampling = prompts([6, 9, 4]), Sampling(90, temperature=0)
    network = looping()
    plain = Sampler(sampling, []).sample(network, asked, keys_for(3))
    passes = counting(network)
    same(Sampler(sampling, [], speculative=PromptLookup()).sample(network, asked, keys_for(3)), plain)
    assert len(passes) < 45

    unlike = Sampling(90)  # nearly even draws from 64 tokens: a guess is right once in 64 times
    passes.clear()
    Sampler(unlike, [], speculative=PromptLookup()).sample(network, asked, keys_for(3))
    assert sum(passes[1:]) < 1.1 * 89 * 3


@pytest.mark.parametrize("settings", [{"num_tokens": 0}, {"ngram": 0}])
def test_settings_that_cannot_work_are_named(settings):
    ((name, value),) = settings.items()
    with pytest.raises(UserError, match=rf"speculative\.{name}={value} must be at least 1"):
        PromptLookup(**settings).check(None, "speculative")


def test_the_same_call_makes_the_same_passes():
    """Whether drafts pay is told from counts and not from the clock, so that a repeated run is the same bit for bit."""
    asked, network = prompts(), looping()
    passes = counting(network)
    sampler = Sampler(Sampling(40, temperature=0.5), [EOS], 5, speculative=PromptLookup())
    first = sampler.sample(network, asked, keys_for(len(asked)))
    seen = [*passes]
    passes.clear()
    second = sampler.sample(network, asked, keys_for(len(asked)))
    assert passes == seen and len(set(seen)) > 5
    assert all(torch.equal(one.logprobs, other.logprobs) for one, other in zip(first, second, strict=True))
