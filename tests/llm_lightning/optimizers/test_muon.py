"""Muon against its formulas in float64, against torch's own, and on sharded matrices."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

from llm_lightning.errors import UserError
from llm_lightning.optimizers import Muon, sharded

SHAPES = ((6, 4), (4, 6), (6, 4), (3, 3), (6, 4), (5, 4), (2, 5, 4))


def parameters(shapes, dtype=torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator).to(dtype)) for shape in shapes]


def gradients(step: int, shapes, dtype=torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step + 1)
    return [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]


def orthogonal_by_loops(matrix: torch.Tensor) -> torch.Tensor:
    x = matrix / matrix.square().sum().sqrt()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return x


def test_steps_are_those_of_the_formulas_in_float64():
    weights = parameters(SHAPES)
    optimizer = Muon(weights, lr=0.02, weight_decay=0.1)
    optimizer.orthogonalize(weights)
    expected = [weight.detach().double() for weight in weights]
    averages = [torch.zeros_like(weight) for weight in expected]
    for step in range(4):
        for number, gradient in enumerate(gradients(step, SHAPES)):
            weights[number].grad = gradient
            averages[number] = 0.95 * averages[number] + 0.05 * gradient.double()
            ahead = 0.05 * gradient.double() + 0.95 * averages[number]
            matrices = ahead if ahead.ndim > 2 else ahead[None]
            update = torch.stack([orthogonal_by_loops(each) for each in matrices]).reshape(ahead.shape)
            size = 0.2 * max(ahead.shape[-2:]) ** 0.5
            expected[number] = expected[number] * (1 - 0.02 * 0.1) - 0.02 * size * update
        optimizer.step()
    for weight, wanted in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.detach().double(), wanted, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_it_is_torchs_own(monkeypatch):
    monkeypatch.setattr(sharded, "compute_dtype", lambda device: torch.bfloat16)
    shapes = ((8, 8), (4, 12), (12, 4), (8, 8))
    ours, theirs, ours_flat, theirs_flat = (parameters(each) for each in (shapes, shapes, [(9,)], [(9,)]))
    settings = {"lr": 0.02, "weight_decay": 0.1}
    optimizer = Muon([{"params": ours}, {"params": ours_flat, "weight_decay": 0.0}], **settings)
    optimizer.orthogonalize(ours)
    muon = torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(theirs_flat, lr=0.02, weight_decay=0, betas=(0.9, 0.95), fused=True)
    for step in range(5):
        for weights in (ours, theirs):
            for weight, gradient in zip(weights, gradients(step, shapes), strict=True):
                weight.grad = gradient
        ours_flat[0].grad = theirs_flat[0].grad = gradients(step, [(9,)])[0]
        for each in (optimizer, muon, adamw):
            each.step()
    for weight, wanted in zip([*ours, *ours_flat], [*theirs, *theirs_flat], strict=True):
        torch.testing.assert_close(weight, wanted, rtol=1e-6, atol=1e-6)


def test_singular_values_come_near_one():
    weights = parameters([(64, 32)])
    optimizer = Muon(weights, lr=1.0, weight_decay=0)
    optimizer.orthogonalize(weights)
    before = weights[0].detach().clone()
    (weights[0].grad,) = gradients(0, [(64, 32)])
    optimizer.step()
    values = torch.linalg.svdvals((before - weights[0].detach()) / (0.2 * 64**0.5))
    assert values.min() > 0.6 and values.max() < 1.3


def test_it_goes_on_from_its_state_to_the_bit():
    def steps(optimizer, weights, first, last):
        for step in range(first, last):
            for weight, gradient in zip(weights, gradients(step, SHAPES), strict=True):
                weight.grad = gradient
            optimizer.step()

    def begun(weights):
        optimizer = Muon(weights)
        optimizer.orthogonalize(weights[:5])
        return optimizer

    whole, halves = parameters(SHAPES), parameters(SHAPES)
    steps(begun(whole), whole, 0, 4)
    first = begun(halves)
    steps(first, halves, 0, 2)
    second = begun(halves)
    second.load_state_dict(first.state_dict())
    steps(second, halves, 2, 4)
    assert all(torch.equal(one, other) for one, other in zip(whole, halves, strict=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": -1e-3}, "lr=-0.001 is below 0"),
        ({"momentum": 1.0}, "momentum=1.0 is not in"),
        ({"betas": (0.9, 1.5)}, r"betas\[1\]=1.5"),
        ({"ns_steps": 0}, "ns_steps=0 is not in 1..20"),
    ],
)
def test_settings_out_of_range_are_named(settings, words):
    with pytest.raises(UserError, match=words):
        Muon(parameters(SHAPES), **settings)


def test_nothing_to_make_orthogonal_is_said():
    optimizer = Muon(parameters([(4,)]))
    with pytest.raises(UserError, match="none of the trained parameters is a matrix"):
        optimizer.orthogonalize([])
    with pytest.raises(RuntimeError, match="orthogonalize"):
        optimizer.step()


def train_shards(rank: int, address: str, num_ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=num_ranks)
    mesh = init_device_mesh("cpu", (num_ranks,))
    both = init_device_mesh("cpu", (1, num_ranks), mesh_dim_names=("data", "tensor"))
    weights = [torch.nn.Parameter(distribute_tensor(weight.data, mesh, [Shard(0)])) for weight in parameters(SHAPES)]
    shared = torch.nn.Parameter(distribute_tensor(parameters([(4, 6)])[0].data, both, [Shard(0), Shard(1)]))
    optimizer = Muon([*weights, shared], lr=0.02)
    optimizer.orthogonalize([*weights, shared])
    for step in range(3):
        for weight, gradient in zip([*weights, shared], gradients(step, [*SHAPES, (4, 6)]), strict=True):
            weight.grad = distribute_tensor(gradient, weight.device_mesh, weight.placements)
        optimizer.step()
    assert all(isinstance(optimizer.state[weight]["momentum_buffer"], DTensor) for weight in weights)
    whole = [weight.full_tensor().detach() for weight in [*weights, shared]]
    if rank == 0:
        torch.save(whole, f"{folder}/weights.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("num_ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_shards_are_trained_as_whole_matrices(tmp_path, num_ranks):
    """Uneven and empty shards, numbers of matrices that ranks do not divide, and layers that two ranks share."""
    torch.multiprocessing.spawn(train_shards, (f"file://{tmp_path}/meeting", num_ranks, str(tmp_path)), num_ranks)
    found = torch.load(tmp_path / "weights.pt", weights_only=True)
    expected = [*parameters(SHAPES), *parameters([(4, 6)])]
    optimizer = Muon(expected, lr=0.02)
    optimizer.orthogonalize(expected)
    for step in range(3):
        for weight, gradient in zip(expected, gradients(step, [*SHAPES, (4, 6)]), strict=True):
            weight.grad = gradient
        optimizer.step()
    for weight, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(weight, wanted.detach(), rtol=1e-5, atol=1e-5)
