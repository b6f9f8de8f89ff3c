"""The weights of a network that can be pruned, whatever an adapter or a sharded strategy has put around them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from callbacks.errors import CallbackError
from callbacks.network import base_layer, base_network, is_zero_3, local


@dataclass(frozen=True)
class Weight:
    """One matrix, of which this rank holds some rows (all of them unless the strategy shards).

    Args:
        name: of the parameter in the network as transformers knows it, without what an adapter adds to names.
        layer: the module that is called with the weight's inputs (..., in).
        parameter: (out, in).
    """

    name: str
    layer: nn.Module
    parameter: nn.Parameter

    @property
    def shape(self) -> torch.Size:
        """(out, in) of the whole matrix."""
        return self.parameter.shape

    @property
    def local(self) -> Tensor:
        """This rank's rows; changes to it change the parameter."""
        return local(self.parameter.detach())

    @property
    def value(self) -> Tensor:
        """This rank's rows of what the network computes with: with what a LoRA on the layer adds."""
        layer: Any = self.layer
        if not hasattr(layer, "get_delta_weight"):
            return self.local
        with torch.no_grad():
            return sum((layer.get_delta_weight(name) for name in layer.active_adapters), self.local)

    @property
    def group(self) -> Any:
        """The ranks that hold the other rows, None where there are none."""
        axis = sharded_axis(self.parameter, self.name)
        return None if axis is None else mesh_of(self.parameter).get_group(axis)

    @property
    def first_row(self) -> int:
        """Index of this rank's first row in the whole matrix."""
        axis = sharded_axis(self.parameter, self.name)
        if axis is None:
            return 0
        mesh, num_rows = mesh_of(self.parameter), self.shape[0]
        rows_a_rank = -(-num_rows // mesh.size(axis))
        return min(mesh.get_local_rank(axis) * rows_a_rank, num_rows)


def sharded_axis(parameter: Any, name: str = "a weight") -> int | None:
    """The axis of the device mesh along which the ranks hold different rows, None where each holds all of them.

    Raises:
        CallbackError: the parameter is split otherwise.
    """
    if not isinstance(parameter, DTensor):
        return None
    axes = [i for i, placement in enumerate(parameter.placements) if placement == Shard(0)]
    others = [placement for placement in parameter.placements if placement not in (Shard(0), Replicate())]
    if others or len(axes) > 1:
        raise CallbackError(
            f"Pruning: {name} lies on the ranks as {parameter.placements}; only data-parallel sharding by rows (FSDP2) "
            "is known. Set tensor_parallel_size to 1."
        )
    return axes[0] if axes else None


def mesh_of(parameter: Any) -> Any:
    """The device mesh of a sharded parameter."""
    return parameter.device_mesh


def decoder_layers(network: Any) -> nn.ModuleList:
    """The network's blocks, first to last.

    Raises:
        CallbackError: it has none under the usual name.
    """
    layers = getattr(network.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise CallbackError(f"Pruning: {type(network).__name__} has no list of decoder layers; it cannot be pruned.")
    return layers


def find_weights(model: Any, include: Sequence[str] | None, exclude: Sequence[str]) -> list[Weight]:
    """The weights to prune, in the network's order.

    Args:
        model: a transformers network, or a `peft.PeftModel` around one.
        include: patterns (`*.mlp.*`) for names of parameters; None for all linear layers of the decoder's blocks.
            Embeddings and head are pruned only where a pattern names them.
        exclude: patterns for those to leave out.

    Raises:
        CallbackError: a pattern matches nothing, or the weights cannot be pruned.
    """
    network = base_network(model)
    found = list(_matrices(network))
    chosen = {weight.name for weight in found}
    if include is not None:
        chosen = _matching(found, include, "include")
    else:
        inside = {id(parameter) for parameter in decoder_layers(network).parameters()}
        chosen = {weight.name for weight in found if id(weight.parameter) in inside}
    chosen -= _matching(found, exclude, "exclude")
    weights = [weight for weight in found if weight.name in chosen]
    if not weights:
        raise CallbackError(f"Pruning: {type(network).__name__} has no linear layer to prune.")
    for weight in weights:
        _check(weight)
    return weights


def _matrices(network: nn.Module) -> Iterator[Weight]:
    """Each linear layer and embedding once; a weight that is tied counts as the linear layer's."""
    adapters: list[str] = []
    embeddings: list[Weight] = []
    seen = set()
    for path, module in network.named_modules():
        if any(path.startswith(prefix) for prefix in adapters):
            continue
        layer = base_layer(module)
        if layer is not module:
            adapters.append(f"{path}.")
        if isinstance(layer, nn.Linear):
            seen.add(id(layer.weight))
            yield Weight(f"{path}.weight", module, cast(nn.Parameter, layer.weight))
        elif isinstance(layer, nn.Embedding):
            embeddings.append(Weight(f"{path}.weight", module, cast(nn.Parameter, layer.weight)))
    yield from (weight for weight in embeddings if id(weight.parameter) not in seen)


def _matching(weights: list[Weight], patterns: Sequence[str], setting: str) -> set[str]:
    names = [weight.name for weight in weights]
    matched = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatchcase(name, pattern)}
        if not hits:
            raise CallbackError(
                f"Pruning.{setting}: {pattern!r} matches no weight. Patterns are for whole names with * for anything, "
                f"for example '*.mlp.*'; the first weights are {', '.join(names[:3])}."
            )
        matched |= hits
    return matched


def _check(weight: Weight) -> None:
    parameter: Any = weight.parameter
    is_plain = type(parameter.data) is Tensor or isinstance(parameter, DTensor)
    if not (parameter.is_floating_point() and is_plain):
        raise CallbackError(
            f"Pruning: {weight.name} is quantized. Prune first, without model.backbone.quantization, then quantize."
        )
    if is_zero_3(parameter):
        raise CallbackError("Pruning does not know DeepSpeed's ZeRO 3: use strategy ddp or fsdp2.")
    sharded_axis(parameter, weight.name)


def reduce_sum(tensor: Tensor, group: Any = None) -> Tensor:
    """The sum over the ranks of a group (by default all), in place; nothing to do in a single process."""
    if dist.is_initialized():
        dist.all_reduce(tensor, group=group)
    return tensor
