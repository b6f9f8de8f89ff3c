"""Layers that compute with the weights that a scheme would leave them, and learn those that are to be rounded."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from callbacks.network import base_layer

Rounding = Callable[[Tensor], Tensor]
"""From values to those that the quantized network computes with, of the same shape and dtype."""


class StraightThrough(torch.autograd.Function):
    """The rounded values forwards, and backwards the gradient as if nothing had been rounded (arXiv:1308.3432)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rounding: Rounding) -> Tensor:
        """Of the same shape as `values`."""
        return rounding(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradient as it came, and none for the rounding."""
        return gradients[0], None


@dataclass
class RoundedLayers:
    """Linear layers whose forward rounds, while `on`; their parameters, and so all that is saved, stay as they are.

    Args:
        weights: How weights (out, in) are rounded; with a LoRA, after what it adds.
        inputs: How the inputs (..., in) of a layer are; None where they are not.
        on: Whether anything is.
    """

    weights: Rounding
    inputs: Rounding | None = None
    on: bool = False

    def __post_init__(self) -> None:
        self._layers: list[Any] = []

    def attach(self, layers: list[nn.Module]) -> None:
        """Take over the forward of linear layers, or of what peft's LoRA put around them."""
        for layer in layers:
            layer.forward = partial(self._forward, layer)
            self._layers.append(layer)

    def detach(self) -> None:
        """Give all layers their own forward back."""
        for layer in self._layers:
            del layer.forward
        self._layers = []

    def _forward(self, layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.on or getattr(layer, "disable_adapters", False) or kwargs.get("adapter_names"):
            return type(layer).forward(layer, x, *args, **kwargs)
        linear = base_layer(layer)
        weight = linear.weight
        if layer is not linear and not layer.merged:
            weight = weight + sum(layer.get_delta_weight(name) for name in layer.active_adapters)
        if self.inputs is not None:
            x = StraightThrough.apply(x, self.inputs)
        return F.linear(x, StraightThrough.apply(weight, self.weights), linear.bias)
