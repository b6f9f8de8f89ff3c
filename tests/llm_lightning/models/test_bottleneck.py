"""Bottleneck adapters, which no other library checks for us."""

import pytest
import torch
from transformers import GPT2Config

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.bottleneck import BottleneckConfig, add_bottlenecks, load_bottleneck, save_bottleneck
from llm_lightning.models.backbone import Backbone
from tests.llm_lightning.conftest import tiny_config
from tests.llm_lightning.models.peft_methods import disturb

IDS = torch.arange(1, 13)[None]


def test_it_starts_as_the_network_itself(network):
    before, names = network(IDS).logits, set(network.state_dict())
    add_bottlenecks(network, BottleneckConfig())
    assert torch.equal(network(IDS).logits, before)
    assert names <= set(network.state_dict())
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == set(network.state_dict()) - names and all(".bottleneck." in name for name in trained)


def test_it_is_houlsbys_adapter(network):
    """x + up(activation(down(x))) after attention and after the feed-forward network, before the residual sum."""
    add_bottlenecks(network, BottleneckConfig(reduction_factor=4, activation="relu"))
    disturb(network)
    layer = network.model.layers[0]
    for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
        adapter = projection.bottleneck
        assert adapter.down.weight.shape == (8, 32)
        x = torch.randn(1, 3, projection.in_features)
        y = x @ projection.weight.T
        expected = y + (y @ adapter.down.weight.T + adapter.down.bias).relu() @ adapter.up.weight.T + adapter.up.bias
        torch.testing.assert_close(projection(x), expected)


@pytest.mark.parametrize(("placement", "count"), [("houlsby", 4), ("pfeiffer", 2)])
def test_placements(network, placement, count):
    add_bottlenecks(network, BottleneckConfig(size=5, placement=placement))
    sizes = [m.bottleneck.down.out_features for m in network.modules() if hasattr(m, "bottleneck")]
    assert sizes == [5] * count


def test_other_names_and_layers():
    gpt2 = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=128, bos_token_id=1, eos_token_id=2)
    network = Backbone(config=gpt2).build().eval()
    before = network(IDS).logits
    add_bottlenecks(network, BottleneckConfig())
    assert sum(hasattr(m, "bottleneck") for m in network.modules()) == 4
    assert torch.equal(network(IDS).logits, before)


def test_saved_and_loaded(network, tmp_path):
    add_bottlenecks(network, BottleneckConfig(reduction_factor=4, placement="pfeiffer"))
    disturb(network)
    save_bottleneck(network, tmp_path)
    torch.manual_seed(0)
    loaded = load_bottleneck(Backbone(config=tiny_config()).build(), tmp_path)
    assert torch.equal(loaded(IDS).logits, network(IDS).logits)
    assert not any(p.requires_grad for p in loaded.parameters())
    with pytest.raises(UserError, match="for another network"):
        load_bottleneck(Backbone(config=tiny_config(hidden_size=64)).build(), tmp_path)
    with pytest.raises(UserError, match="for another network"):
        load_bottleneck(Backbone(config=tiny_config(num_hidden_layers=1)).build(), tmp_path)


def test_mistakes_are_named(network):
    with pytest.raises(UserError, match=r"model\.peft\.activation='swosh'"):
        add_bottlenecks(network, BottleneckConfig(activation="swosh"))
    with pytest.raises(UserError, match=r"model\.peft\.target_modules"):
        add_bottlenecks(network, BottleneckConfig(target_modules=["lm_head"]))
