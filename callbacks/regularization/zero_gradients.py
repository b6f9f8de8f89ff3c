"""Weights that a pass leaves out, and that have gradients all the same: zeros."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def with_zero_gradients(states: Tensor, weights: Sequence[nn.Parameter]) -> Tensor:
    """The states, as they are; in the backward pass each of the weights gets a gradient of zeros.

    DDP and FSDP wait for the gradient of every weight, and an optimizer that saw none would treat a weight otherwise
    than one whose gradient is 0.
    """
    return _ZeroGradients.apply(states, *weights)


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, *weights: nn.Parameter) -> Tensor:
        # Not by `save_for_backward`: FSDP frees what it gathered and gathers it anew, and only the shapes are needed.
        ctx.weights = weights
        return states.clone()  # FSDP warns of views, which in-place operations could take from under its hooks

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return (gradient, *(torch.zeros_like(weight) for weight in ctx.weights))
