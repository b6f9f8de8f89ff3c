"""The norm of gradients, whatever parts of them this rank holds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


def with_gradients(optimizer: Optimizer) -> list[Any]:
    """The optimizer's parameters that have a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def gradient_norm(optimizer: Optimizer) -> Tensor:
    """() `total_norm` of an optimizer's gradients."""
    return total_norm([p.grad for p in with_gradients(optimizer)])


def by_mesh(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """The gradients in groups that torch takes together: those that lie on the ranks in the same way."""
    groups: dict[object, list[Tensor]] = {}
    for gradient in gradients:
        key = (gradient.device_mesh, gradient.placements) if isinstance(gradient, DTensor) else None
        groups.setdefault(key, []).append(gradient)
    return list(groups.values())


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """() Euclidean norm over all ranks' parts, the same on all of them; one rank's, where each holds all."""
    norms = [torch.nn.utils.get_total_norm(group, foreach=True) for group in by_mesh(gradients)]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return whole[0] if len(whole) == 1 else torch.stack(whole).square().sum().sqrt()


def scale(gradients: Sequence[Tensor], factor: float) -> None:
    """Multiply them in place."""
    for group in by_mesh(gradients):
        torch._foreach_mul_(group, factor)
