"""What the backward pass computes again: the losses stay, and products are counted."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llm_lightning.errors import UserError
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.heads import language_loss, prepare_batch
from tests.llm_lightning.conftest import pack, random_documents, stack, tiny_config


class Calls(TorchDispatchMode):
    """Counts operators that really run."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def step(how):
    torch.manual_seed(0)
    network = Backbone(config=tiny_config(), activation_checkpointing=how).build()
    batch = prepare_batch(stack(*(pack(random_documents([20, 30, 11], seed=row), 64) for row in range(2))))
    with Calls() as calls:
        loss = language_loss(network, batch).loss
        loss.backward()
    return loss.item(), {name: p.grad for name, p in network.named_parameters()}, calls.counts


@pytest.fixture(scope="module")
def plain():
    return step(False)


@pytest.mark.parametrize("how", [True, "selective"])
def test_losses_and_gradients_are_those_without(plain, how):
    loss, gradients, counts = step(how)
    assert loss == plain[0]
    for name, expected in plain[1].items():
        torch.testing.assert_close(gradients[name], expected, rtol=1e-6, atol=1e-7)
    for name in ("aten.mm.default", "llm_lightning.document_attention.default"):
        assert (counts[name] > plain[2][name]) == (how != "selective"), name
    assert counts["aten.rsqrt.default"] > plain[2]["aten.rsqrt.default"]  # of the norms, which are cheap


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a device to move them away from")
def test_nothing_is_moved_to_the_host_from_the_host():
    with pytest.raises(UserError, match="=offload moves activations from a GPU"):
        Backbone(config=tiny_config(), activation_checkpointing="offload").build()


def test_selective_and_compiled_layers_exclude_each_other():
    with pytest.raises(UserError, match="=selective does not go with"):
        Backbone(config=tiny_config(), activation_checkpointing="selective", compile=True).build()
