"""Schemes of torchao: weights as tensors of a class of their own, in layers that stay `nn.Linear`."""

from typing import Any

import torch

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
    """Each weight its sign times the mean magnitude of its group, which is nearest in squares (arXiv:1603.05279).

    torchao has no such rule, but a format that holds it: levels -1, 0 and 1, where 0 is for pruned weights alone.
    """
    from torchao.quantization import IntxUnpackedToInt8Tensor, IntxWeightOnlyConfig, PerGroup

    assert request.group_size is not None
    dtype: Any = getattr(torch, "int2")  # noqa: B009 (torch's type hints lack it)
    config = IntxWeightOnlyConfig(weight_dtype=dtype, granularity=PerGroup(request.group_size))
    network, original = _quantized(request, config), request.load()
    for name, module in network.named_modules():
        if isinstance(getattr(module, "weight", None), IntxUnpackedToInt8Tensor):
            signs, scale = binarized(original.get_submodule(name).weight.detach(), request.group_size)
            levels = (signs, scale, torch.zeros_like(scale, dtype=torch.int8))
            weight = IntxUnpackedToInt8Tensor(
                *levels, dtype, (1, request.group_size), request.dtype, activation_quantization=None
            )
            module.weight = torch.nn.Parameter(weight, requires_grad=False)
    network.save_pretrained(request.output)


def binarized(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Signs (out, in) int8 of a weight (out, in), and the scale (out, in / group_size) of each group.

    Weights that are exactly zero stay so and do not count for the scale.
    """
    groups = weight.unflatten(1, (-1, group_size))
    num_weights = groups.count_nonzero(-1).clamp(min=1)
    return weight.sign().to(torch.int8), groups.abs().sum(-1) / num_weights


def _quantize(request: Request, config: Any) -> None:
    _quantized(request, config).save_pretrained(request.output)


def _quantized(request: Request, config: Any) -> Any:
    from transformers import TorchAoConfig

    kept = list(request.kept)
    return request.load(quantization_config=TorchAoConfig(config, modules_to_not_convert=kept))
