"""The network's loss against transformers' own, packed against unpacked."""

import pytest
import torch

from llm_lightning.models.backbone import Backbone
from llm_lightning.models.heads import language_loss, prepare_batch
from tests.llm_lightning.conftest import pack, random_documents, stack, tiny_config

LENGTHS = [7, 20, 3, 11]


def gradients(network, loss):
    return torch.autograd.grad(loss, list(network.parameters()))


def test_loss_equals_transformers(network):
    (document,) = random_documents([32])
    batch = pack([document], 32)
    loss, nll, *_ = language_loss(network, prepare_batch(batch))
    expected = network(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss * 31
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(nll, expected.detach(), rtol=1e-6, atol=1e-5)
    for a, b in zip(gradients(network, loss), gradients(network, expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", ["llm_lightning_documents", "sdpa", "eager"])
def test_packed_equals_unpacked(attention):
    """Loss and gradients of four documents in two rows, and one by one through transformers' own loss."""
    torch.manual_seed(0)
    network = Backbone(config=tiny_config(), attention=attention).build().double()
    documents = random_documents(LENGTHS)
    packed = stack(pack(documents[:2], 30), pack(documents[2:], 30))
    loss, *_ = language_loss(network, prepare_batch(packed))
    alone = sum(
        network(input_ids=torch.tensor([d]), labels=torch.tensor([d])).loss.double() * (len(d) - 1) for d in documents
    )
    torch.testing.assert_close(loss.double(), alone, rtol=1e-6, atol=1e-6)
    for a, b in zip(gradients(network, loss), gradients(network, alone), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_padded_equals_unpacked(network):
    documents = random_documents(LENGTHS)
    width = max(LENGTHS)
    batch = {
        "input_ids": torch.tensor([d + [0] * (width - len(d)) for d in documents]),
        "labels": torch.tensor([d + [-100] * (width - len(d)) for d in documents]),
        "attention_mask": torch.tensor([[1] * len(d) + [0] * (width - len(d)) for d in documents]),
    }
    loss, *_ = language_loss(network, prepare_batch(batch))
    packed, *_ = language_loss(network, prepare_batch(pack(documents, 50)))
    torch.testing.assert_close(loss, packed, rtol=1e-5, atol=1e-4)


def test_autocast_stays_near_float32(network):
    batch = prepare_batch(pack(random_documents(LENGTHS), 50))
    expected, *_ = language_loss(network, batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss, *_ = language_loss(network, batch)
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)


def test_a_masked_batch_gives_zero(network):
    batch = pack(random_documents([16]), 16)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss, *_ = language_loss(network, prepare_batch(batch))
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
        ("Qwen3Config", {"hidden_size": 32, "head_dim": 8, "layer_types": None}),
        ("CohereConfig", {"hidden_size": 32, "logit_scale": 0.25}),
        ("GraniteConfig", {"hidden_size": 32, "logits_scaling": 4.0}),
        ("PhiConfig", {"hidden_size": 32}),  # its head has a bias
        ("Gemma3TextConfig", {"hidden_size": 32, "head_dim": 8, "final_logit_softcapping": 5.0, "layer_types": None}),
        ("MistralConfig", {"hidden_size": 32, "head_dim": 8, "sliding_window": 4}),
    ],
)
def test_other_architectures(name, changes):
    """What an architecture does to its logits and its attention is honoured: packed equals its own loss, one by one."""
    import transformers

    common = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    common = {} if name == "GPT2Config" else common
    config = getattr(transformers, name)(
        vocab_size=128, pad_token_id=0, bos_token_id=1, eos_token_id=2, **common | changes
    )
    torch.manual_seed(0)
    network = Backbone(config=config).build().eval()
    documents = random_documents(LENGTHS)
    loss, *_ = language_loss(network, prepare_batch(pack(documents, 50)))
    network.set_attn_implementation("eager")
    alone = sum(network(input_ids=torch.tensor([d]), labels=torch.tensor([d])).loss * (len(d) - 1) for d in documents)
    torch.testing.assert_close(loss, alone, rtol=1e-5, atol=1e-4)
