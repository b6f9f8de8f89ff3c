"""How several networks' values of one weight become one: functions of tensors, in float32.

Where there is a base, what is merged is how far each network went from it, its change; else the weights themselves.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Method = Literal["linear", "slerp", "ties", "dare"]

PARALLEL = 1e-6
"""One less the cosine of two weights below which there is no arc between them."""


@dataclass(frozen=True)
class Merging:
    """What is done to each weight.

    Args:
        method: `linear` takes the mean (model soups, arXiv:2203.05482; of changes, task arithmetic, arXiv:2212.04089);
            `slerp` goes along the arc between two; `ties` (arXiv:2306.01708) keeps the largest part of each change and
            of these the ones that have the sign that most of them have; `dare` (arXiv:2311.03099) keeps a random part
            of each change, enlarged by as much as is lost.
        weights: of each network. They are divided by their sum, except where there is a base: there a change counts as
            often as its weight says.
        density: of `ties` and `dare`, the share of each change that is kept. 0.2 is what TIES was published with; DARE
            loses little down to 0.1.
        seed: of `dare`.
    """

    method: Method
    weights: tuple[float, ...]
    density: float = 0.2
    seed: int = 0


def merged(name: str, values: Sequence[Tensor], base: Tensor | None, merging: Merging) -> Tensor:
    """The merged value of one weight, float32.

    Args:
        name: of the weight: `dare` draws by it, whatever the order of the weights.
        values: float32, each network's.
        base: float32; None for none.
        merging: what to do.
    """
    if merging.method == "slerp":
        return _along_the_arc(values[0], values[1], merging.weights[1] / sum(merging.weights))
    if base is None:
        return _mean(values, merging.weights)
    changes = [value - base for value in values]
    if merging.method == "ties":
        return base + _elected([_largest(change, merging.density) for change in changes], merging.weights)
    if merging.method == "dare":
        changes = [
            change * _drawn(f"{name} {number}", change, merging) / merging.density
            for number, change in enumerate(changes)
        ]
    total = base.clone()
    for change, weight in zip(changes, merging.weights, strict=True):
        total.add_(change, alpha=weight)
    return total


def _mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """From the first value on, so that equal ones give just that value."""
    total, whole = values[0].clone(), sum(weights)
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total.add_(value - values[0], alpha=weight / whole)
    return total


def _along_the_arc(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Spherical interpolation (Shoemake, 1985) of the two as vectors; straight where they have one direction."""
    lengths = one.norm() * other.norm()
    cosine = (one * other).sum() / lengths.clamp(min=torch.finfo(one.dtype).tiny)
    if 1 - cosine.abs() < PARALLEL or lengths == 0:
        return one + share * (other - one)
    angle = torch.arccos(cosine)
    return (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other) / torch.sin(angle)


def _largest(change: Tensor, density: float) -> Tensor:
    """A change without all but the largest of its numbers."""
    count = max(1, round(change.numel() * density))
    if count >= change.numel():
        return change
    least = change.abs().flatten().kthvalue(change.numel() - count + 1).values
    return torch.where(change.abs() >= least, change, 0.0)


def _elected(changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean of those changes of a number that have the sign of their sum."""
    weighted = [change * weight for change, weight in zip(changes, weights, strict=True)]
    sign = torch.stack(weighted).sum(0).sign()
    total, count = torch.zeros_like(changes[0]), torch.zeros_like(changes[0])
    for part, weight in zip(weighted, weights, strict=True):
        agrees = (part.sign() == sign) & (part != 0)
        total += torch.where(agrees, part, 0.0)
        count += agrees * weight
    return torch.where(count > 0, total / count, 0.0)


def _drawn(name: str, change: Tensor, merging: Merging) -> Tensor:
    """Which numbers of a change stay, by chance that has a name."""
    seed = hashlib.blake2b(f"{merging.seed} {name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "little") % 2**63)
    return torch.rand(change.shape, generator=generator) < merging.density
