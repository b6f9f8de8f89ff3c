"""The chunked loss in bfloat16 against float64, eager and compiled."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from llm_lightning.objectives import chunks
from llm_lightning.objectives.language import linear_cross_entropy

pytestmark = pytest.mark.gpu
H, V = 64, 1024


def inputs(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(count, H, generator=g), 0.2 * torch.randn(V, H, generator=g)
    return hidden.bfloat16(), weight.bfloat16(), torch.randint(V, (count,), generator=g)


def chunked(hidden, weight, targets):
    with torch.autocast(hidden.device.type, torch.bfloat16):
        return linear_cross_entropy(hidden, weight, targets).loss


@pytest.fixture
def four_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", dict.fromkeys(("cpu", "cuda"), 256 * V * 4))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_loss_and_gradients_are_near_float64(device, four_chunks, compiled):
    if compiled and device.type == "cpu":
        pytest.skip("the kernels that are compiled for a CPU are others")
    rounded = inputs(1000)
    hidden, weight = (x.to(device).float().requires_grad_() for x in rounded[:2])
    function = torch.compile(chunked) if compiled else chunked
    loss = function(hidden, weight, rounded[2].to(device))
    ours = torch.autograd.grad(loss, (hidden, weight))
    exact = [x.double().requires_grad_() for x in rounded[:2]]
    expected = F.cross_entropy(F.linear(*exact), rounded[2], reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    for found, wanted in zip(ours, torch.autograd.grad(expected, exact), strict=True):
        assert float((found.double().cpu() - wanted).norm() / wanted.norm()) < 1e-2


def test_twenty_lengths_are_one_graph_without_a_break(device, four_chunks):
    """Of as many chunks each: the loop over chunks is unrolled, so that another number of them is another graph."""
    torch._dynamo.reset()
    counters.clear()
    backend = "inductor" if device.type == "cuda" else "eager"
    function = torch.compile(chunked, backend=backend)
    seen = []
    for number in range(20):
        hidden, weight, targets = (x.to(device) for x in inputs(900 + 3 * number, seed=number))
        function(hidden.float().requires_grad_(), weight.float().requires_grad_(), targets).backward()
        seen.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert seen[-1] == seen[1] <= 2, seen  # the second length makes the graph general
