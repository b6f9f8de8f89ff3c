"""The sampler against `transformers.generate` and against plain forward passes."""

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig
from transformers import (
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
)

from llm_lightning.models.adapters.adapter import Adapter
from llm_lightning.models.backbone import Backbone
from llm_lightning.rollouts import Sampler, Sampling, sampler
from llm_lightning.rollouts.sampler import STOP_EVERY
from llm_lightning.rollouts.slots import ROOM
from llm_lightning.rollouts.trial import fits_slots

VOCAB, EOS = 64, 7
COMMON = {"vocab_size": VOCAB, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": EOS}
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
NETWORKS = {
    "llama": LlamaConfig(**COMMON, **SIZES),
    "qwen3": Qwen3Config(**COMMON, **SIZES, head_dim=8),
    "mistral, sliding window": MistralConfig(**COMMON, **SIZES, sliding_window=9),
    "gpt2": GPT2Config(**COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "gemma2, capped": Gemma2Config(**COMMON, **SIZES, head_dim=8, attn_logit_softcapping=2.0, sliding_window=9),
    "gpt-oss, sinks": GptOssConfig(
        **COMMON, **SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=9
    ),
    "gpt-neox": GPTNeoXConfig(**COMMON, **(SIZES | {"num_key_value_heads": 4})),
}
WITHOUT_SLOTS = {
    "bloom": BloomConfig(**COMMON, hidden_size=32, n_layer=2, n_head=4),
    "mamba": MambaConfig(**COMMON, hidden_size=32, num_hidden_layers=2, state_size=8),
    "gpt-j": GPTJConfig(**COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
    "llama by sdpa": LlamaConfig(**COMMON, **SIZES),
}
LENGTHS = [3, 17, 1, 30, 8, 70, 5, 2, 11, 4, 26, 6, 9, 14]


def network_of(config, attention: str = Backbone.attention):
    torch.manual_seed(1)
    return Backbone(config=config, attention=attention).build()


def prompts(lengths=LENGTHS):
    g = torch.Generator().manual_seed(5)
    return [torch.randint(8, VOCAB, (n,), generator=g) for n in lengths]


def keys_for(count: int, num_samples: int = 1):
    return [[(11, prompt, sample) for sample in range(num_samples)] for prompt in range(count)]


def generated(network, prompts, max_new_tokens: int) -> list[list[int]]:
    """Greedy `generate` of a left-padded batch, with pad = eos, cut behind the first EOS."""
    width = max(map(len, prompts))
    ids = torch.tensor([[EOS] * (width - len(p)) + p.tolist() for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    options = {"do_sample": False, "eos_token_id": EOS, "pad_token_id": EOS, "use_cache": True}
    network.eval()
    rows = network.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, **options)
    completions = [row[width:].tolist() for row in rows]
    return [completion[: completion.index(EOS) + 1] if EOS in completion else completion for completion in completions]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("num_slots", [64, 3])
def test_greedy_completions_equal_those_of_generate(name, num_slots):
    network, asked = network_of(NETWORKS[name]), prompts()
    expected = generated(network, asked, 80)
    assert fits_slots(network)
    ours = Sampler(Sampling(80, temperature=0), [EOS], num_slots).sample(network, asked, keys_for(len(asked)))
    assert [completion.tokens.tolist() for completion in ours] == expected
    assert [completion.is_finished for completion in ours] == [EOS in completion for completion in expected]
    if name == "llama":  # what the test is worth: completions of several lengths, some cut off, slots that grew
        assert len({len(completion) for completion in expected}) > 2
        assert any(EOS in completion for completion in expected)
        assert max(map(len, expected)) == 80 > ROOM


def test_logprobs_are_those_of_a_full_forward_pass():
    network, asked = network_of(NETWORKS["llama"]), prompts()
    sampling = Sampling(40, temperature=0.8, top_p=0.9)
    for number, completion in enumerate(Sampler(sampling, [EOS], 6).sample(network, asked, keys_for(len(asked), 2))):
        prompt = asked[number // 2]
        with torch.no_grad():
            logits = network(torch.cat([prompt, completion.tokens])[None]).logits[0].double() / 0.8
        logprobs = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, completion.tokens[:, None]).squeeze(1)
        assert completion.logprobs.tolist() == pytest.approx(logprobs.tolist(), abs=2e-5)
        assert completion.tokens.tolist().count(EOS) == completion.is_finished


def test_a_completion_depends_on_nothing_that_is_written_beside_it():
    network, asked = network_of(NETWORKS["llama"]), prompts()
    together = Sampler(Sampling(30), [EOS]).sample(network, asked, keys_for(len(asked), 3))
    few_slots = Sampler(Sampling(30), [EOS], 4).sample(network, asked, keys_for(len(asked), 3))
    alone = Sampler(Sampling(30), [EOS]).sample(network, [asked[4]], [[(11, 4, 1)]])
    assert [a.tokens.tolist() for a in together] == [a.tokens.tolist() for a in few_slots]
    assert alone[0].tokens.tolist() == together[4 * 3 + 1].tokens.tolist()
    assert len({tuple(a.tokens.tolist()) for a in together}) > 35


def test_completions_are_as_likely_as_the_network_says():
    network = network_of(NETWORKS["llama"])
    prompt = prompts([6])
    with torch.no_grad():
        expected = network(prompt[0][None]).logits[0, -1].softmax(-1)
    completions = Sampler(Sampling(1), [EOS]).sample(network, prompt, keys_for(1, 4000))
    shares = torch.bincount(torch.cat([a.tokens for a in completions]), minlength=VOCAB) / 4000
    assert float((shares - expected).abs().max()) < 0.025


def test_a_prompt_is_computed_once_and_what_is_over_costs_nothing():
    network, asked = network_of(NETWORKS["llama"]), prompts([20, 10])
    seen: list[tuple[int, int]] = []
    network.get_decoder().register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    completions = Sampler(Sampling(200), [EOS]).sample(network, asked, keys_for(2, 16))
    lengths = sorted(len(a.tokens) for a in completions)
    assert seen[0] == (1, 30)
    steps = [rows for rows, width in seen[1:]]
    assert len(steps) == lengths[-1] - 1
    for step, rows in enumerate(steps):
        alive = sum(length > step + 1 for length in lengths)
        assert alive <= rows <= max(alive * 4 / 3, alive + 1)
    assert steps[-1] < 16


def test_refilled_slots_keep_the_batch_full():
    network, asked = network_of(NETWORKS["llama"]), prompts([5] * 40)
    rows: list[int] = []
    network.get_decoder().register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    completions = Sampler(Sampling(40), [EOS], 8).sample(network, asked, keys_for(40))
    assert len(completions) == 40
    steps = [r for r in rows if r > 1]
    assert max(steps) == 8
    assert sum(r >= 6 for r in steps) > 0.6 * len(steps)


def test_the_network_is_left_as_it_was(network):
    network.train()
    attention = network.config._attn_implementation
    Sampler(Sampling(4), [EOS]).sample(network, prompts([3]), keys_for(1))
    assert network.training
    assert network.config._attn_implementation == attention
    assert all(parameter.grad is None for parameter in network.parameters())


def test_an_adapter_is_sampled_from_with_the_adapter():
    from peft import LoraConfig

    network, asked = network_of(NETWORKS["llama"]), prompts()
    plain = Sampler(Sampling(20, temperature=0), [EOS]).sample(network, asked, keys_for(len(asked)))
    model = Adapter(network, LoraConfig(r=4, target_modules="all-linear")).model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    adapted = Sampler(Sampling(20, temperature=0), [EOS]).sample(model, asked, keys_for(len(asked)))
    assert [a.tokens.tolist() for a in adapted] == generated(model, asked, 20)
    assert [a.tokens.tolist() for a in adapted] != [a.tokens.tolist() for a in plain]


@pytest.mark.parametrize("name", WITHOUT_SLOTS)
def test_networks_that_fit_no_slots_read_the_whole_text_for_every_token(name):
    network = network_of(WITHOUT_SLOTS[name], "sdpa" if name.endswith("by sdpa") else Backbone.attention)
    asked = prompts([3, 17, 1, 8])
    expected = [generated(network, [prompt], 12)[0] for prompt in asked]
    ours = Sampler(Sampling(12, temperature=0), [EOS], 3).sample(network, asked, keys_for(len(asked)))
    assert not fits_slots(network)
    assert [completion.tokens.tolist() for completion in ours] == expected


@pytest.mark.parametrize("num_slots", [64, 3])
def test_a_completion_that_is_over_stops_soon_and_changes_no_other(num_slots):
    network, asked = network_of(NETWORKS["llama"]), prompts()
    sampling = Sampling(60, temperature=0)
    whole = Sampler(sampling, [EOS], num_slots).sample(network, asked, keys_for(len(asked)))

    def has_stop(number: int, tokens: torch.Tensor) -> bool:
        assert torch.equal(tokens, whole[number].tokens[: len(tokens)])
        return number % 2 == 0 and 11 in tokens.tolist()

    stopped = Sampler(sampling, [EOS], num_slots, has_stop)
    found = stopped.sample(network, asked, keys_for(len(asked)))
    by_stream = dict(stopped.stream(network, asked, [key for (key,) in keys_for(len(asked))]))
    num_shorter = 0
    for number, (one, other) in enumerate(zip(whole, found, strict=True)):
        assert by_stream[number].tokens.tolist() == other.tokens.tolist()
        if len(other.tokens) == len(one.tokens):
            continue
        num_shorter += 1
        place = one.tokens.tolist().index(11)
        assert place < len(other.tokens) <= place + 1 + STOP_EVERY
        assert other.tokens.tolist() == one.tokens.tolist()[: len(other.tokens)]
        assert not other.is_finished
    assert num_shorter > 1


def test_nothing_to_write(network):
    assert Sampler(Sampling(4), [EOS]).sample(network, [], []) == []


@pytest.mark.parametrize("name", NETWORKS)
def test_what_prompts_begin_with_is_computed_once(name):
    network, (examples, *rest) = network_of(NETWORKS[name]), prompts([80, *LENGTHS])
    asked = [torch.cat([examples, each]) for each in rest]
    expected = generated(network, asked, 20)
    seen: list[int] = []
    network.get_decoder().register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    sampler = Sampler(Sampling(20, temperature=0), [EOS], 8)
    ours = sampler.sample(network, [*asked, asked[2]], keys_for(len(asked) + 1))
    assert [completion.tokens.tolist() for completion in ours] == [*expected, expected[2]]
    assert seen[0] == 80 + sum(map(len, rest[:8]))


@pytest.mark.parametrize("way", [Backbone.attention, "sdpa"], ids=["slots", "texts"])
def test_a_forward_pass_over_prompts_holds_no_more_than_it_may(monkeypatch, way):
    monkeypatch.setattr(sampler, "PROMPT_TOKENS", 40)
    network, (examples, *rest) = network_of(NETWORKS["llama"], way), prompts([30, *LENGTHS])
    asked = [*rest, *(torch.cat([examples, each]) for each in rest)]
    expected = [generated(network, [prompt], 1)[0] for prompt in asked]
    seen: list[int] = []
    network.get_decoder().register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    ours = Sampler(Sampling(1, temperature=0), [EOS]).sample(network, asked, keys_for(len(asked)))
    assert [completion.tokens.tolist() for completion in ours] == expected
    passes = seen[:-1]  # the last one is over what was written
    assert {length for length in passes if length > 40} <= {len(prompt) for prompt in asked}
    assert 1 < len(passes) < len(asked)
    # All prompts, with the examples once for each pass that has to begin anew, not once for each prompt.
    assert way == "sdpa" or sum(passes) <= sum(map(len, rest)) * 2 + 30 * len(passes)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens_stand_before_every_prompt(kind):
    network, asked = network_of(NETWORKS["llama"]), prompts([3, 17, 1, 30, 8])
    plain = Sampler(Sampling(12, temperature=0), [EOS]).sample(network, asked, keys_for(len(asked)))
    torch.manual_seed(3)
    model = Adapter(network, kind(num_virtual_tokens=5, task_type="CAUSAL_LM")).model.eval()
    expected = [generated(model, [prompt], 12)[0] for prompt in asked]
    ours = Sampler(Sampling(12, temperature=0), [EOS], 3).sample(model, asked, keys_for(len(asked)))
    assert [completion.tokens.tolist() for completion in ours] == expected
    assert [completion.tokens.tolist() for completion in plain] != expected
