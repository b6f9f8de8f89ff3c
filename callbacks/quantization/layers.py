"""Which layers of a network are quantized, whether that can be done, and whether it was."""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from callbacks.errors import CallbackError
from callbacks.network import base_layer, base_network


def kept_layers(network: Any, patterns: Sequence[str] | None) -> list[str]:
    """Names of the linear layers that stay in high precision.

    Args:
        network: A `transformers.PreTrainedModel`, or a `peft.PeftModel` around one.
        patterns: Of module names, with `*`; None for the head.

    Raises:
        CallbackError: A pattern fits no linear layer, no layer is left, or the head shares its weight with the
            embeddings and is not among them.
    """
    layers = linear_layers(network)
    head = network.get_output_embeddings()
    head_names = [name for name, layer in layers.items() if layer is head]
    if patterns is None:
        kept = head_names
    else:
        kept = [name for name in layers if any(fnmatchcase(name, pattern) for pattern in patterns)]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in layers):
                raise CallbackError(
                    f"Quantization.high_precision: {pattern!r} fits no linear layer; there are {_examples(layers)}."
                )
        if head.weight is network.get_input_embeddings().weight and not set(head_names) <= set(kept):
            raise CallbackError(
                f"Quantization.high_precision: {head_names[0]} shares its weight with the embeddings and cannot be "
                f"quantized: add {head_names[0]!r}."
            )
    if len(kept) == len(layers):
        raise CallbackError(
            "Quantization.high_precision: no linear layer is left to quantize."
            if layers
            else f"Quantization: {type(network).__name__} has no linear layers (torch.nn.Linear) to quantize."
        )
    return kept


def check_widths(network: Any, kept: Sequence[str], name: str, group_size: int | None, multiple: int) -> None:
    """Raise `CallbackError` where a layer's widths do not fit: libraries would leave it as it is, without a word.

    Args:
        network: As in `kept_layers`.
        kept: From there.
        name: Of the scheme.
        group_size: What must divide the input features; None for no groups.
        multiple: What input and output features must be multiples of.
    """
    layers = {layer: module for layer, module in linear_layers(network).items() if layer not in kept}
    for layer_name, layer in layers.items():
        if group_size is not None and layer.in_features % group_size:
            common = math.gcd(*(layer.in_features for layer in layers.values()))
            fitting = [str(size) for size in (16, 32, 64, 128, 256) if common % size == 0]
            hint = f"of the usual sizes {', '.join(fitting)} divide all layers" if fitting else "no usual size does"
            raise CallbackError(
                f"Quantization.group_size={group_size} does not divide the {layer.in_features} inputs of {layer_name}; "
                f"{hint}. Or keep the layer as it is by Quantization.high_precision."
            )
        for width in (layer.in_features, layer.out_features):
            if width % multiple:
                raise CallbackError(
                    f"Quantization.schemes: {name} needs widths that are multiples of {multiple}, and {layer_name} is "
                    f"{layer.in_features} x {layer.out_features}. Keep it as it is by Quantization.high_precision."
                )


def check_quantized(network: Any, names: Sequence[str], scheme: str) -> None:
    """Raise `CallbackError` where one of the layers is still unquantized.

    Args:
        network: Loaded from the folder that the library wrote.
        names: Of the layers that the scheme was to quantize.
        scheme: Its name.
    """
    for name in names:
        weight = getattr(network.get_submodule(name), "weight", None)
        if type(weight) is nn.Parameter and weight.is_floating_point() and weight.dtype.itemsize > 1:
            raise CallbackError(
                f"Quantization.schemes: {scheme} left {name} as it was. To agree, name it in "
                "Quantization.high_precision."
            )


def linear_layers(network: Any) -> dict[str, nn.Linear]:
    """The linear layers by the names they have in the transformers network."""
    modules = base_network(network).named_modules()
    layers = {name: base_layer(module) for name, module in modules if ".base_layer" not in name}
    return {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear) and "lora_" not in name}


def _examples(layers: dict[str, nn.Linear]) -> str:
    names = list(layers)
    return ", ".join(names if len(names) <= 8 else [*names[:7], "...", names[-1]])


def num_weights(layers: Sequence[nn.Linear]) -> int:
    """Weights in the layers."""
    return sum(layer.in_features * layer.out_features for layer in layers)
