"""Budgets for thoughts, against a loop that writes one token at a time."""

import pytest
import torch
from transformers import LlamaConfig

from datamodules.encoding.tokenizer import train
from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.rollouts.sampling import Sampling, draw, uniforms
from llm_lightning.rollouts.thinking import Thinking, ThinkingSampler

EOS = 0
TAGS = ("<think>", "</think>")


@pytest.fixture(scope="module")
def tokenizers():
    """Whose thoughts end by a token that is flagged special, by one that is not, or by a text."""
    found = {}
    for kind in ("special", "added", "text"):
        tokenizer = train(iter(["It is a number."] * 9), vocab_size=270)
        if kind != "text":
            tokenizer.add_tokens(list(TAGS), special_tokens=kind == "special")
        found[kind] = tokenizer
    return found


def thinking_of(kind, **settings):
    texts = {"end": "t", "start": "Hm"} if kind == "text" else {}
    return Thinking(**texts, **settings)


def network_of(tokenizer):
    """Draws most of all from a few tokens, ends among them."""
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    network = Backbone(config=config).build(tokenizer).eval()
    likely = [EOS, *range(len(tokenizer) - 8, len(tokenizer)), *tokenizer.encode("It t", add_special_tokens=False)]
    with torch.no_grad():
        network.lm_head.weight[likely] += network.lm_head.weight[likely] * 3
    return network


def one_by_one(network, tokenizer, thinking, sampling, prompt, key):
    """Tokens behind the prompt, where the answer begins, and how many tokens count."""
    ids = {
        name: tokenizer.encode(getattr(thinking, name), add_special_tokens=False) for name in ("start", "end", "wait")
    }
    mark = thinking.end.strip()
    is_opened = tokenizer.decode(prompt).rstrip().endswith(thinking.start.strip())
    opening = [] if is_opened else ids["start"]

    def next_token(written, uniform):
        text = torch.cat([prompt, torch.tensor(written, dtype=torch.int64)])
        with torch.no_grad():
            return int(draw(network(text[None]).logits[:, -1].float(), uniform[None], sampling)[0])

    thoughts, waits, closing, attempt = [], thinking.waits, None, 0
    while closing is None:
        attempt += 1
        own, random = [], uniforms([(*key, attempt)], thinking.budget)[0]
        while True:
            if len(thoughts) + len(own) == thinking.budget:
                thoughts, closing = thoughts + own, ids["end"]
                break
            token = next_token([*opening, *thoughts, *own], random[len(own)])
            own.append(token)
            is_end = token != EOS and mark in tokenizer.decode(own)
            if token != EOS and not is_end:
                continue
            before = own[:-1]
            while mark not in TAGS and is_end and before and not _begins(tokenizer, before, own, mark):
                before.pop()
            if waits and thinking.budget - len(thoughts) - len(before) > len(ids["wait"]):
                waits -= 1
                thoughts = [*thoughts, *before, *ids["wait"]]
            elif is_end:
                thoughts, closing = thoughts + own, []
            else:
                thoughts, closing = thoughts + before, ids["end"]
            break
    written = [*opening, *thoughts, *closing]
    answer_at, random = len(written), uniforms([key], sampling.max_new_tokens)[0]
    for number in range(sampling.max_new_tokens):
        token = next_token(written, random[number])
        if token == tokenizer.convert_tokens_to_ids(TAGS[0]) and TAGS[0] in tokenizer.get_vocab():
            break
        written.append(token)
        if token == EOS:
            break
    return written, answer_at, len(thoughts)


def _begins(tokenizer, before, own, mark):
    return tokenizer.decode(own).split(mark)[0].startswith(tokenizer.decode(before))


@pytest.mark.parametrize("kind", ["special", "added", "text"])
@pytest.mark.parametrize("waits", [0, 2])
@torch.no_grad()
def test_thoughts_are_those_of_a_loop_over_tokens(tokenizers, kind, waits):
    tokenizer = tokenizers[kind]
    network, thinking = network_of(tokenizer), thinking_of(kind, budget=10 if kind == "text" else 24, waits=waits)
    sampling = Sampling(max_new_tokens=6)
    texts = ["It is", "a number" + ("\n<think>\n" if kind != "text" else "Hm"), "number. It"]
    prompts = [torch.tensor(tokenizer.encode(text, add_special_tokens=False)) for text in texts for _ in range(12)]
    keys = [(5, number) for number in range(len(prompts))]
    sampler = ThinkingSampler(thinking, tokenizer, sampling, [EOS], num_slots=5)
    found = dict(sampler.stream(network, prompts, keys))
    assert sorted(found) == list(range(len(prompts)))
    forced = 0
    for number, thought in found.items():
        written, answer_at, count = one_by_one(network, tokenizer, thinking, sampling, prompts[number], keys[number])
        assert thought.tokens.tolist() == written
        assert (thought.answer_at, thought.num_thoughts) == (answer_at, count)
        assert count <= thinking.budget and len(written) <= sampler.most_tokens
        assert thought.is_finished == (written[-1] == EOS and len(written) > answer_at)
        forced += count == thinking.budget
    assert 0 < forced < len(found)  # some thoughts are over before, and some are cut off
    if waits:
        wait = tokenizer.decode(tokenizer.encode(thinking.wait, add_special_tokens=False))
        assert any(wait in tokenizer.decode(thought.tokens[: thought.answer_at]) for thought in found.values())


def test_an_answer_depends_on_nothing_beside_it(tokenizers):
    tokenizer = tokenizers["added"]
    network, thinking = network_of(tokenizer), thinking_of("added", budget=16, waits=1)
    prompts = [torch.tensor(tokenizer.encode("It is" * n, add_special_tokens=False)) for n in range(1, 8)]
    keys = [(number,) for number in range(len(prompts))]

    def written(slots, which):
        sampler = ThinkingSampler(thinking, tokenizer, Sampling(8), [EOS], num_slots=slots)
        stream = sampler.stream(network, [prompts[i] for i in which], [keys[i] for i in which])
        return {which[number]: thought.tokens.tolist() for number, thought in stream}

    every = written(7, list(range(7)))
    assert written(1, [6, 2, 4]) == {number: every[number] for number in (6, 2, 4)}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"budget": 0}, r"thinking.budget=0 must be at least 1"),
        ({"waits": -1}, r"thinking.waits=-1 must be at least 0"),
        ({"waits": 1, "wait": ""}, r"thinking.wait='' must be a text where waits are asked for"),
        ({"end": " \n"}, r"thinking.end=' \\n' must be a text that ends the thoughts"),
    ],
)
def test_values_that_cannot_work(settings, words):
    with pytest.raises(UserError, match=words):
        Thinking(**settings).check("thinking")
