"""Structured masks made real: rows and columns leave the weights, and the config tells the new sizes."""

from typing import Any

import torch
from torch import Tensor, nn

from callbacks.network import base_network
from callbacks.pruning.structured import Block, Structured, check_sizes
from callbacks.pruning.structures import Kept
from callbacks.pruning.weights import decoder_layers


@torch.no_grad()
def remove_units(model: Any, structure: Structured, kept: Kept) -> None:
    """Cut the network in place to what the masks keep; its function stays that of the masked one.

    Args:
        model: a transformers network without an adapter, every rank with all of its weights.
        structure: attached to the network.
        kept: masks of all its blocks, with equally many units in each block that is left.

    Raises:
        CallbackError: the architecture's config cannot say the sizes.
    """
    network = base_network(model)
    left = [block for block in structure.units if any(mask.any() for mask in _masks_of(block, kept))]
    numbers = {"channels": 0, "kv_groups": 0, "layers": len(structure.units) - len(left)}
    first = left[0]
    if "mlp.down_proj" in first.weights and (mask := kept.get(first.weights["mlp.down_proj"].name)) is not None:
        numbers["channels"] = int((~mask).sum())
    if "self_attn.k_proj" in first.weights and (mask := kept.get(first.weights["self_attn.k_proj"].name)) is not None:
        numbers["kv_groups"] = int((~mask).sum()) // first.head_dim
    sizes = structure.new_sizes(numbers)
    check_sizes(network, sizes)
    for block in left:
        for part, weight in block.weights.items():
            if weight.name in kept:
                _cut(block.linear(part), kept[weight.name])
        if "intermediate_size" in sizes and hasattr(block.module.mlp, "intermediate_size"):
            block.module.mlp.intermediate_size = sizes["intermediate_size"]
    config = network.config.get_text_config()
    for name, value in sizes.items():
        setattr(config, name, value)
    if numbers["layers"]:
        _keep_layers(network, [block.index for block in left])


def _masks_of(block: Block, kept: Kept) -> list[Tensor]:
    """Its masks; a part without one is all kept."""
    return [kept.get(weight.name, torch.ones(1, dtype=torch.bool)) for weight in block.weights.values()]


def _cut(linear: nn.Linear, mask: Tensor) -> None:
    """Keep the rows (out, 1) or the columns (1, in) of a mask."""
    keeps_rows = mask.shape[1] == 1 and mask.shape[0] == linear.out_features
    units = mask.flatten().nonzero()[:, 0].to(linear.weight.device)
    dim = 0 if keeps_rows else 1
    linear.weight = nn.Parameter(linear.weight.index_select(dim, units), requires_grad=linear.weight.requires_grad)
    if keeps_rows:
        linear.out_features = len(units)
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias[units], requires_grad=linear.bias.requires_grad)
    else:
        linear.in_features = len(units)


def _keep_layers(network: Any, indices: list[int]) -> None:
    layers = decoder_layers(network)
    network.get_decoder().layers = nn.ModuleList(layers[i] for i in indices)
    config = network.config.get_text_config()
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in indices]
    for i, layer in enumerate(network.get_decoder().layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = i  # the place in the key-value cache
