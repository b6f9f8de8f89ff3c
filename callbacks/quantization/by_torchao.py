"""Schemes of torchao: weights as tensors of a class of their own, in layers that stay `nn.Linear`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from callbacks.quantization.request import Request


def int8(request: Request) -> None:
    """8-bit weights, one scale a row."""
    from torchao.quantization import Int8WeightOnlyConfig

    _quantize(request, Int8WeightOnlyConfig(**request.options))


def int8_dynamic(request: Request) -> None:
    """8-bit weights, one scale a row, and 8-bit activations, one scale a token, found as they come."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    _quantize(request, Int8DynamicActivationInt8WeightConfig(**request.options))


def float8(request: Request) -> None:
    """8-bit floating point weights, one scale a row."""
    from torchao.quantization import Float8WeightOnlyConfig

    _quantize(request, Float8WeightOnlyConfig(**request.options))


def float8_dynamic(request: Request) -> None:
    """8-bit floating point weights and activations."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow

    _quantize(request, Float8DynamicActivationFloat8WeightConfig(**{"granularity": PerRow()} | dict(request.options)))


def int4(request: Request) -> None:
    """4-bit weights for torch's own CUDA kernel, rounded to nearest."""
    from torchao.quantization import Int4WeightOnlyConfig
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    packing = Int4PackingFormat.TILE_PACKED_TO_4D
    options = {"group_size": request.group_size, "int4_packing_format": packing} | dict(request.options)
    _quantize(request, Int4WeightOnlyConfig(**options))


def binary(request: Request) -> None:
    """Each weight its sign times the mean magnitude of its group, which is nearest in squares (arXiv:1603.05279)."""
    _of_three_levels(request, binarized)


def ternary(request: Request) -> None:
    """Each weight -1, 0 or 1 times the mean magnitude of its group, whichever is nearest (arXiv:2402.17764)."""
    _of_three_levels(request, ternarized)


def binarized(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Signs (out, in) int8 of a weight (out, in), and the scale (out, in / group_size) of each group.

    Weights that are exactly zero stay so and do not count for the scale.
    """
    groups = weight.unflatten(1, (-1, group_size))
    num_weights = groups.count_nonzero(-1).clamp(min=1)
    return weight.sign().to(torch.int8), groups.abs().sum(-1) / num_weights


def ternarized(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Levels -1, 0 and 1 (out, in) int8 of a weight (out, in), and the scale (out, in / group_size) of each group."""
    groups = weight.unflatten(1, (-1, group_size))
    scale = groups.abs().mean(-1)
    smallest = torch.finfo(scale.dtype).tiny
    levels = (groups / scale.clamp(min=smallest).unsqueeze(-1)).round().clamp(-1, 1)
    return levels.flatten(1).to(torch.int8), scale


def rounded_to_int8(weight: Tensor, group_size: int | None = None, symmetric: bool = False) -> Tensor:
    """A weight (out, in) as `int8` and `int8-dynamic` leave it, by torchao's own rounding."""
    from torchao.quantization import Int8Tensor, PerRow

    return Int8Tensor.from_hp(weight, PerRow()).dequantize()


def rounded_to_signs(weight: Tensor, group_size: int, symmetric: bool = False) -> Tensor:
    """A weight (out, in) as `int1` leaves it."""
    return _values(*binarized(weight, group_size))


def rounded_to_three(weight: Tensor, group_size: int, symmetric: bool = False) -> Tensor:
    """A weight (out, in) as `ternary` leaves it."""
    return _values(*ternarized(weight, group_size))


def _values(levels: Tensor, scale: Tensor) -> Tensor:
    return (levels.unflatten(1, (scale.shape[1], -1)) * scale.unsqueeze(-1)).flatten(1)


def _of_three_levels(request: Request, find: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> None:
    """torchao has no such rules, but a format that holds what comes of them: levels -1, 0 and 1."""
    from torchao.quantization import IntxUnpackedToInt8Tensor, IntxWeightOnlyConfig, PerGroup

    assert request.group_size is not None
    dtype: Any = getattr(torch, "int2")  # noqa: B009 (torch's type hints lack it)
    config = IntxWeightOnlyConfig(weight_dtype=dtype, granularity=PerGroup(request.group_size))
    network, original = _quantized(request, config), request.load()
    for name, module in network.named_modules():
        if isinstance(getattr(module, "weight", None), IntxUnpackedToInt8Tensor):
            levels, scale = find(original.get_submodule(name).weight.detach(), request.group_size)
            parts = (levels, scale, torch.zeros_like(scale, dtype=torch.int8))
            weight = IntxUnpackedToInt8Tensor(
                *parts, dtype, (1, request.group_size), request.dtype, activation_quantization=None
            )
            module.weight = torch.nn.Parameter(weight, requires_grad=False)
    network.save_pretrained(request.output)


def _quantize(request: Request, config: Any) -> None:
    _quantized(request, config).save_pretrained(request.output)


def _quantized(request: Request, config: Any) -> Any:
    from transformers import TorchAoConfig

    kept = list(request.kept)
    return request.load(quantization_config=TorchAoConfig(config, modules_to_not_convert=kept))
