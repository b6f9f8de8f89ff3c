"""Likelihoods of continuations against plain forward passes, one request at a time."""

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig
from transformers import BloomConfig, Gemma2Config, GptOssConfig, LlamaConfig, MambaConfig, MistralConfig, Qwen3Config

from llm_lightning.evaluation.likelihoods import Plan, Request, likelihoods
from llm_lightning.models.adapters.adapter import Adapter
from llm_lightning.models.backbone import Backbone

VOCAB = 64
COMMON = {"vocab_size": VOCAB, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 7}
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
NETWORKS = {
    "llama": LlamaConfig(**COMMON, **SIZES),
    "qwen3": Qwen3Config(**COMMON, **SIZES, head_dim=8),
    "mistral, sliding window": MistralConfig(**COMMON, **SIZES, sliding_window=9),
    "gemma2, capped": Gemma2Config(**COMMON, **SIZES, head_dim=8, attn_logit_softcapping=2.0, sliding_window=9),
    "gpt-oss, sinks": GptOssConfig(
        **COMMON, **SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=9
    ),
    "bloom, apart": BloomConfig(**COMMON, hidden_size=32, n_layer=2, n_head=4),
    "mamba, apart": MambaConfig(**COMMON, hidden_size=32, num_hidden_layers=2, state_size=8),
}


def network_of(config, attention: str = Backbone.attention):
    torch.manual_seed(1)
    return Backbone(config=config, attention=attention).build()


def ids(n: int, seed: int) -> list[int]:
    return torch.randint(8, VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def few_shot_requests() -> list[Request]:
    """Ten questions behind the same examples, four options each, one of them of one token, and some loners."""
    examples = ids(40, 1)
    requests = []
    for question in range(10):
        context = examples + ids(5 + question, 10 + question)
        requests += [Request(context, ids(n, 100 + 4 * question + n)) for n in (3, 1, 6, 2)]
    return [*requests, Request(ids(1, 3), ids(30, 4)), Request(examples[:20], ids(2, 5)), requests[0]]


@torch.no_grad()
def alone(model, request: Request) -> tuple[float, bool]:
    sequence = torch.tensor([[*request.context, *request.continuation]])
    logits = model(sequence).logits[0, len(request.context) - 1 : -1].double()
    target = torch.tensor(request.continuation)
    logprobs = logits.log_softmax(-1).gather(1, target[:, None])
    return float(logprobs.sum()), bool((logits.argmax(-1) == target).all())


def ours(model, requests, row_tokens: int = 8192) -> list[tuple[float, bool]]:
    found = dict(likelihoods(model, requests, row_tokens))
    assert sorted(found) == list(range(len(requests)))
    return [found[number] for number in range(len(requests))]


@pytest.mark.parametrize("name", NETWORKS)
def test_likelihoods_are_those_of_each_request_alone(name):
    network, requests = network_of(NETWORKS[name]), few_shot_requests()
    reference = network_of(NETWORKS[name], "eager").eval()
    # Greedy is to be true of some.
    best = int(reference(torch.tensor([requests[0].context])).logits[0, -1].argmax())
    requests.append(Request(requests[0].context, [best]))
    expected = [alone(reference, request) for request in requests]
    found = ours(network, requests)
    assert network.training
    assert [logprob for logprob, _ in found] == pytest.approx([logprob for logprob, _ in expected], abs=2e-4)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
    assert found[-1][1]
    assert not all(is_greedy for _, is_greedy in found)


@pytest.mark.parametrize("row_tokens", [1, 64, 200, 10**6])
def test_they_do_not_depend_on_the_size_of_a_row(row_tokens):
    network, requests = network_of(NETWORKS["llama"]), few_shot_requests()
    one, other = ours(network, requests), ours(network, requests, row_tokens)
    assert [a.logprob for a in one] == pytest.approx([b.logprob for b in other], abs=1e-4)
    assert [a.is_greedy for a in one] == [b.is_greedy for b in other]


def test_what_requests_share_is_computed_once():
    network, requests = network_of(NETWORKS["llama"]), few_shot_requests()
    seen: list[int] = []
    network.get_decoder().register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    ours(network, requests)
    questions = sum(5 + question + 2 + 5 + 1 for question in range(10))
    assert sum(seen) <= -(-(40 + questions + 30) // 128) * 128
    whole = sum(len(request.context) + len(request.continuation) for request in requests)
    assert whole > 5 * sum(seen)


def test_rows_keep_to_their_tokens():
    requests = few_shot_requests()
    for row in Plan(requests, 128, shares=True).rows():
        assert row.tokens.length <= 128
    lone = list(Plan([Request(ids(300, 1), [3])], 128, shares=True).rows())
    assert len(lone) == 1


@pytest.mark.parametrize(
    "peft",
    [
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
        PromptTuningConfig(num_virtual_tokens=5),
        PrefixTuningConfig(num_virtual_tokens=5),
    ],
    ids=lambda peft: type(peft).__name__,
)
def test_an_adapter_is_read_with_its_network(peft):
    network = network_of(NETWORKS["llama"])
    peft.task_type = "CAUSAL_LM"
    requests = few_shot_requests()[:9]
    plain = ours(network, requests)
    model = Adapter(network, peft).model
    expected = []
    for request in requests:
        sequence = torch.tensor([[*request.context, *request.continuation]])
        with torch.no_grad():
            logits = model.eval()(sequence).logits[0, -len(request.continuation) - 1 : -1].double()
        expected.append(float(logits.log_softmax(-1).gather(1, torch.tensor(request.continuation)[:, None]).sum()))
    found = ours(model, requests)
    assert [logprob for logprob, _ in found] == pytest.approx(expected, abs=2e-4)
    assert [a.logprob for a in found] != pytest.approx([b.logprob for b in plain], abs=1e-2)
