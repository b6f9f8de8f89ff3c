"""Drafts change nothing but the number of forward passes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from scipy import stats
from torch import Tensor

from llm_lightning.models.adapters.adapter import Adapter
from llm_lightning.models.backbone import Backbone
from llm_lightning.rollouts import Completion, PromptLookup, Sampler, Sampling, Speculation
from llm_lightning.rollouts.speculation import Drafter, Drafts
from llm_lightning.rollouts.speculation.contract import Board
from tests.llm_lightning.rollouts.test_sampler import (
    EOS,
    NETWORKS,
    VOCAB,
    WITHOUT_SLOTS,
    generated,
    keys_for,
    network_of,
    prompts,
)

SHARP = Sampling(40, temperature=0.7, top_k=20, top_p=0.9)


class Oracle(Speculation):
    """Drafts that are right for a random number of tokens and then wrong, of random lengths, with gaps."""

    def __init__(self, answers: Sequence[Completion], most: int = 9) -> None:
        self.answers, self.most = [one.tokens.tolist() for one in answers], most
        self.num_drafted = self.num_right = 0

    def check(self, tokenizer: Any, field: str) -> None:
        pass

    def drafter(self, network: Any, sampling: Sampling, prompts: Sequence[Tensor], num_samples: int) -> Drafter:
        owner, random = self, np.random.default_rng(3)

        class Guess(Drafter):
            def draft(self, board: Board) -> Drafts | None:
                drafts = []
                for number, over in zip(board.numbers.tolist(), board.is_over.tolist(), strict=True):
                    place = int(board.num_tokens[number])
                    count = min(int(random.integers(0, owner.most)), board.tokens.shape[1] - place - 1)
                    right = int(random.integers(0, owner.most))
                    draft = owner.answers[number][place : place + right]
                    # Behind an answer's end too: what follows an EOS must not be written.
                    draft = [] if over else (draft + random.integers(8, VOCAB, owner.most).tolist())[:count]
                    drafts.append(draft)
                    owner.num_drafted += len(draft)
                return Drafts.of(drafts, board.numbers.device)

        return Guess()


def same(ours: Sequence[Completion], plain: Sequence[Completion]) -> None:
    for one, other in zip(ours, plain, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.is_finished == other.is_finished
        assert one.logprobs.tolist() == pytest.approx(other.logprobs.tolist(), abs=2e-5)


def counting(network) -> list[int]:
    passes: list[int] = []
    network.get_decoder().register_forward_pre_hook(
        lambda _, __, kwargs: passes.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    return passes


@pytest.mark.parametrize("name", NETWORKS)
def test_greedy_answers_are_those_of_generate_whatever_is_drafted(name):
    network, asked = network_of(NETWORKS[name]), prompts()
    sampling, keys = Sampling(66, temperature=0), keys_for(len(asked))
    expected = generated(network, asked, 66)
    plain = Sampler(sampling, [EOS], 3).sample(network, asked, keys)
    assert [one.tokens.tolist() for one in plain] == expected
    for speculative in (Oracle(plain), PromptLookup()):
        same(Sampler(sampling, [EOS], 5, speculative=speculative).sample(network, asked, keys), plain)


@pytest.mark.parametrize(
    ("name", "sampling"), [("llama", SHARP), ("gemma2, capped", Sampling(40)), ("gpt-oss, sinks", SHARP)]
)
def test_sampled_answers_are_the_very_same_with_drafts(name, sampling):
    network, asked = network_of(NETWORKS[name]), prompts()[:8]
    keys = keys_for(len(asked), 3)
    plain = Sampler(sampling, [EOS], 7).sample(network, asked, keys)
    passes = counting(network)
    same(Sampler(sampling, [EOS], 7, speculative=Oracle(plain)).sample(network, asked, keys), plain)
    drafted = len(passes)
    Sampler(sampling, [EOS], 7).sample(network, asked, keys)
    assert drafted < 0.6 * (len(passes) - drafted)


@pytest.mark.parametrize("name", WITHOUT_SLOTS)
def test_networks_without_slots_read_drafts_too(name):
    network = network_of(WITHOUT_SLOTS[name], "sdpa" if name.endswith("by sdpa") else Backbone.attention)
    asked, sampling = prompts([3, 17, 1, 8]), Sampling(12, temperature=0.8)
    plain = Sampler(sampling, [EOS], 3).sample(network, asked, keys_for(4, 2))
    same(Sampler(sampling, [EOS], 3, speculative=Oracle(plain)).sample(network, asked, keys_for(4, 2)), plain)


@pytest.mark.parametrize("sampling", [Sampling(3), Sampling(3, temperature=0.7, top_p=0.9)], ids=["all", "top-p"])
def test_the_distribution_is_that_of_plain_sampling(sampling):
    """With other random numbers, as the answers would be the same ones; and against the network itself."""
    network, prompt, count = network_of(NETWORKS["llama"]), prompts([6]), 3000
    plain = Sampler(sampling, [EOS], count).sample(network, prompt, keys_for(1, count))
    other = [[(12, sample) for sample in range(count)]]
    ours = Sampler(sampling, [EOS], count, speculative=Oracle(plain)).sample(network, prompt, other)
    assert [one.tokens.tolist() for one in ours] != [one.tokens.tolist() for one in plain]
    for place in range(3):
        table = np.zeros((2, VOCAB))
        for row, answers in zip(table, (plain, ours), strict=True):
            np.add.at(row, [int(one.tokens[place]) for one in answers if len(one.tokens) > place], 1)
        often = table.sum(0) >= 10
        table = np.concatenate([table[:, often], table[:, ~often].sum(1, keepdims=True)], 1)
        assert stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue > 0.001
    if sampling.top_p == 1:
        expected = second_token(network, prompt[0]) * count
        found = np.bincount([int(one.tokens[1]) for one in ours if len(one.tokens) > 1], minlength=VOCAB + 1)
        found[VOCAB] = count - found.sum()
        often = expected >= 5
        pairs = [np.append(each[often], each[~often].sum()) for each in (found, expected)]
        assert stats.chisquare(pairs[0], pairs[1]).pvalue > 0.001


def second_token(network: Any, prompt: Tensor) -> np.ndarray:
    """Probability of each second token, and of there being none, by whole forward passes."""
    with torch.no_grad():
        first = network(prompt[None]).logits[0, -1].double().softmax(-1)
        texts = torch.cat([prompt.expand(VOCAB, -1), torch.arange(VOCAB)[:, None]], 1)
        second = network(texts).logits[:, -1].double().softmax(-1)
    first[EOS], none = 0, float(first[EOS])
    return np.append((first[:, None] * second).sum(0).numpy(), none)


def test_stops_and_shown_texts_see_whole_passes():
    network, asked = network_of(NETWORKS["llama"]), prompts()
    sampling = Sampling(60, temperature=0)
    whole = Sampler(sampling, [EOS]).sample(network, asked, keys_for(len(asked)))

    def has_stop(number: int, tokens: Tensor) -> bool:
        assert torch.equal(tokens, whole[number].tokens[: len(tokens)])
        return number % 2 == 0 and 11 in tokens.tolist()

    sampler = Sampler(sampling, [EOS], 4, has_stop, speculative=Oracle(whole))
    stream = dict(sampler.stream(network, asked, [key for (key,) in keys_for(len(asked))]))
    num_shorter = 0
    for number, one in enumerate(whole):
        tokens = stream[number].tokens.tolist()
        assert tokens == one.tokens.tolist()[: len(tokens)]
        if len(tokens) < len(one.tokens):
            num_shorter += 1
            assert number % 2 == 0 and 11 in tokens
    assert num_shorter > 1


def test_an_adapter_is_drafted_for_with_the_adapter():
    network, asked = network_of(NETWORKS["llama"]), prompts()[:6]
    model = Adapter(network, LoraConfig(r=4, target_modules="all-linear")).model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    plain = Sampler(SHARP, [EOS]).sample(model, asked, keys_for(6))
    same(Sampler(SHARP, [EOS], speculative=Oracle(plain)).sample(model, asked, keys_for(6)), plain)
