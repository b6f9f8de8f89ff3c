"""Learning from the text that is read: against a plain loop, and that it leaves nothing behind."""

import copy

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig

from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.rollouts.adaptation import Adaptation, AdaptingNetwork


def network_of(seed=1):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, tie_word_embeddings=True,
    )  # fmt: skip
    return Backbone(config=config).build().eval()


def text_of(length=150, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 40, (length,), generator=generator)


def test_all_weights_learn_as_in_a_plain_loop():
    network, ids = network_of(), text_of()
    reference = copy.deepcopy(network).double().requires_grad_(True)
    adaptation = Adaptation(lr=1e-3, steps=2, chunk=32, rank=None)
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3)
    wanted = []
    for first in range(1, len(ids), 32):
        stop = min(first + 32, len(ids))
        for step in range(2):
            logits = reference(ids[None, :stop]).logits[0, first - 1 : stop - 1]
            losses = functional.cross_entropy(logits, ids[first:stop], reduction="none")
            wanted += [-losses.detach()] if step == 0 else []
            losses.mean().backward()
            torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    adapting = AdaptingNetwork(network, adaptation)
    with adapting.document():
        found = adapting.read(ids[:1], ids[1:])
    torch.testing.assert_close(found.double(), torch.cat(wanted), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rank", [4, None])
def test_nothing_stays_behind_a_document(rank):
    network, ids = network_of(), text_of()
    names = [name for name, _ in network.named_modules()]
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    was_trained = [weight.requires_grad for weight in network.parameters()]
    with torch.no_grad():
        logits = network(ids[None]).logits
    adapting = AdaptingNetwork(network, Adaptation(lr=1e-2, chunk=16, rank=rank))

    def read():
        with adapting.document():
            found = adapting.read(ids[:1], ids[1:])
            with torch.no_grad():
                assert not torch.allclose(network(ids[None]).logits, logits, atol=1e-2)
        return found

    first = read()
    with torch.no_grad():
        assert torch.equal(network(ids[None]).logits, logits)
    assert torch.equal(read(), first)
    with pytest.raises(KeyboardInterrupt), adapting.document():
        adapting.read(ids[:1], ids[1:60])
        raise KeyboardInterrupt
    assert torch.equal(read(), first)
    adapting.close()
    assert [name for name, _ in network.named_modules()] == names
    assert network.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert [weight.requires_grad for weight in network.parameters()] == was_trained


def test_the_first_chunk_is_read_by_the_network_as_it_is_and_repetitions_are_learned():
    network = network_of()
    ids = text_of(40).repeat(4)
    with torch.no_grad():
        plain = network(ids[None]).logits[0].log_softmax(-1)[:-1].gather(1, ids[1:, None]).squeeze(1)
    adapting = AdaptingNetwork(network, Adaptation(lr=5e-3, steps=4, chunk=20, rank=4))
    with adapting.document():
        found = adapting.read(ids[:1], ids[1:], learn=False)
    torch.testing.assert_close(found[:20], plain[:20], rtol=1e-4, atol=1e-4)
    assert found[-40:].mean() > plain[-40:].mean() + 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": 0.0}, "lr=0.0 must be above 0"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"chunk": 0}, "chunk=0 must be at least 1"),
        ({"rank": 0}, "rank=0 must be at least 1, or null for all weights"),
    ],
)
def test_values_that_cannot_work(settings, words):
    with pytest.raises(UserError, match=f"adaptation.{words}"):
        Adaptation(**settings).check("adaptation")
