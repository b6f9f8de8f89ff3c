"""Structured pruning: channels of the feed-forward networks, heads of attention by KV group, and whole layers."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from callbacks.errors import CallbackError
from callbacks.network import base_layer
from callbacks.pruning.criteria import Criterion
from callbacks.pruning.structures import Kept, Structure
from callbacks.pruning.weights import Weight, decoder_layers

FEED_FORWARD = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")


@dataclass(frozen=True)
class Block:
    """A layer of the decoder, with its matrices by their names in it."""

    index: int
    module: nn.Module
    weights: dict[str, Weight]

    def linear(self, part: str) -> nn.Linear:
        """The linear layer itself, under what an adapter puts around it."""
        return base_layer(self.weights[part].layer)

    @property
    def head_dim(self) -> int:
        """Rows of the key projection for each KV group."""
        return self.module.self_attn.head_dim  # type: ignore[union-attr,return-value]

    @property
    def num_groups(self) -> int:
        """Heads of keys and values; several query heads may share one."""
        return self.weights["self_attn.k_proj"].shape[0] // self.head_dim

    @property
    def heads_a_group(self) -> int:
        """Query heads that share one KV group."""
        return self.weights["self_attn.q_proj"].shape[0] // self.head_dim // self.num_groups


class Structured(Structure):
    """Units of every layer alike, which are really removed at the end: fewer parameters, and faster everywhere.

    A unit is worth what it adds to its layer's output: the norm of its column of `down_proj`, or its columns of
    `o_proj`, in the criterion's scores. Widths are the same in every layer, since a config has one number for all.

    Args:
        channels: share of the feed-forward channels to remove.
        kv_groups: share of the KV groups, each with its query heads.
        layers: share of the layers.
        multiple_of: the channels that are left are a multiple of this, rounded up; matrix products are slow at odd
            widths.

    Raises:
        CallbackError: a share is not in [0, 1), all are 0, or the network cannot be cut like this.
    """

    adds_scores = True

    def __init__(
        self, channels: float = 0.0, kv_groups: float = 0.0, layers: float = 0.0, multiple_of: int = 16
    ) -> None:
        shares = {"channels": channels, "kv_groups": kv_groups, "layers": layers}
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise CallbackError(f"Structured.{name}={share} must be a share from 0 to below 1.")
        if not any(shares.values()):
            raise CallbackError("Structured: nothing to remove; give a share by channels, kv_groups or layers.")
        if multiple_of < 1:
            raise CallbackError(f"Structured.multiple_of={multiple_of} is below 1.")
        self.shares, self.multiple_of = shares, multiple_of
        self.numbers: dict[str, int] = {}
        self.units: list[Block] = []

    def attach(self, network: Any, weights: list[Weight]) -> dict[str, nn.Parameter]:
        """Every block needs the parts that a Llama's has, and the smaller sizes must fit into a config."""
        self.units = list(_blocks(network, weights, self._parts()))
        for block in self.units:
            for weight in block.weights.values():
                if weight.group is not None:
                    raise CallbackError(
                        "Structured: rows and columns cannot be removed from weights that are sharded over ranks: use "
                        "strategy ddp, or an unstructured mask."
                    )
        self.numbers = self._numbers(network)
        check_sizes(network, self.new_sizes(self.numbers))
        if self.numbers["layers"]:
            self.blocks = [block.module for block in self.units]
        parameters = {}
        for block in self.units:
            for part, weight in block.weights.items():
                parameters[weight.name] = weight.parameter
                bias = block.linear(part).bias
                if bias is not None:
                    parameters[_bias_name(weight)] = bias
        return parameters

    def masks(self, weights: list[Weight], criterion: Criterion, kept: Kept, fraction: float) -> dict[str, Tensor]:
        """The units with the lowest scores of each layer, and the layers with the lowest."""
        removed = self._removed_layers(criterion, kept, round(fraction * self.numbers["layers"]))
        masks: dict[str, Tensor] = {}
        for block in self.units:
            if block.index in removed:
                _keep(masks, block, block.weights, torch.zeros((), dtype=torch.bool))
                continue
            if self.numbers["channels"]:
                scores = _column_scores(block.weights["mlp.down_proj"], criterion, 1, kept)
                channels = _without_lowest(scores, round(fraction * self.numbers["channels"]))
                _keep(masks, block, FEED_FORWARD, channels)
            if self.numbers["kv_groups"]:
                width = block.head_dim * block.heads_a_group
                scores = _column_scores(block.weights["self_attn.o_proj"], criterion, width, kept)
                groups = _without_lowest(scores, round(fraction * self.numbers["kv_groups"]))
                _keep(masks, block, ("self_attn.q_proj", "self_attn.o_proj"), groups.repeat_interleave(width))
                narrow = groups.repeat_interleave(block.head_dim)
                _keep(masks, block, ("self_attn.k_proj", "self_attn.v_proj"), narrow)
        return masks

    def new_sizes(self, numbers: dict[str, int]) -> dict[str, int]:
        """The config's numbers once so many units are removed."""
        first, sizes = self.units[0], {}
        if numbers["channels"]:
            sizes["intermediate_size"] = first.weights["mlp.down_proj"].shape[1] - numbers["channels"]
        if numbers["kv_groups"]:
            left = first.num_groups - numbers["kv_groups"]
            sizes["num_key_value_heads"] = left
            sizes["num_attention_heads"] = left * first.heads_a_group
            sizes["head_dim"] = first.head_dim
        if numbers["layers"]:
            sizes["num_hidden_layers"] = len(self.units) - numbers["layers"]
        return sizes

    def _parts(self) -> tuple[str, ...]:
        if self.shares["layers"]:
            return FEED_FORWARD + ATTENTION
        return (FEED_FORWARD if self.shares["channels"] else ()) + (ATTENTION if self.shares["kv_groups"] else ())

    def _numbers(self, network: Any) -> dict[str, int]:
        """How many units of each kind the shares are."""
        first, numbers = self.units[0], dict.fromkeys(self.shares, 0)
        totals = {"layers": len(self.units)}
        if self.shares["channels"]:
            totals["channels"] = first.weights["mlp.down_proj"].shape[1]
        if self.shares["kv_groups"]:
            totals["kv_groups"] = first.num_groups
        for kind, total in totals.items():
            share = self.shares[kind]
            numbers[kind] = round(share * total)
            if kind == "channels":
                step = self.multiple_of
                numbers[kind] = total - -(-round((1 - share) * total) // step) * step
            if share and not 0 < numbers[kind] < total:
                raise CallbackError(
                    f"Structured.{kind}={share} of {type(network).__name__}'s {total} comes to {max(numbers[kind], 0)} "
                    "to remove: choose a share that removes some and leaves some."
                )
        return numbers

    def _removed_layers(self, criterion: Criterion, kept: Kept, count: int) -> set[int]:
        if not count:
            return set()
        scores = []
        for block in self.units:
            names = [weight.name for weight in block.weights.values()]
            if all(name in kept and not kept[name].any() for name in names):
                scores.append(-1.0)
                continue
            score = criterion.block_score(block.index)
            if score is None:
                score = sum(float(criterion.score(weight).square().sum()) for weight in block.weights.values())
            scores.append(score)
        return set(sorted(range(len(scores)), key=scores.__getitem__)[:count])


def check_sizes(network: Any, sizes: dict[str, int]) -> None:
    """Raise `CallbackError` where the architecture's config does not take these numbers."""
    config = copy.deepcopy(network.config.get_text_config())
    for name, value in sizes.items():
        setattr(config, name, value)
    if "num_hidden_layers" in sizes and getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: sizes["num_hidden_layers"]]
    try:
        with torch.device("meta"):
            small = type(network)(type(config).from_dict(config.to_dict()))
    except Exception as error:
        reason = str(error).strip().splitlines()[-1].strip()
        changed = ", ".join(f"{name}={value}" for name, value in sizes.items())
        raise CallbackError(f"Structured: {type(config).__name__} does not take {changed}: {reason}") from error
    attention: Any = decoder_layers(small)[0].self_attn
    if "head_dim" in sizes and attention.head_dim != sizes["head_dim"]:
        raise CallbackError(f"Structured.kv_groups: {type(config).__name__} has no head_dim of its own to keep.")


def _blocks(network: Any, weights: list[Weight], parts: tuple[str, ...]) -> Iterator[Block]:
    by_name = {weight.name: weight for weight in weights}
    paths = {id(module): path for path, module in network.named_modules()}
    for i, module in enumerate(decoder_layers(network)):
        names = {part: f"{paths[id(module)]}.{part}.weight" for part in parts}
        for name in names.values():
            if name not in by_name:
                raise CallbackError(
                    f"Structured: there is no {name} in {type(network).__name__} to prune. It cuts blocks like Llama's "
                    "and all of them alike: leave Pruning.include and exclude out, or use an unstructured mask."
                )
        block = Block(i, module, {part: by_name[name] for part, name in names.items()})
        norm = getattr(getattr(module, "self_attn", None), "q_norm", None)
        if "self_attn.q_proj" in parts and norm is not None and norm.weight.numel() != block.head_dim:
            raise CallbackError(
                f"Structured.kv_groups: {type(network).__name__} normalizes all heads of a token together, so that "
                "removing one changes the others."
            )
        yield block


def _column_scores(weight: Weight, criterion: Criterion, width: int, kept: Kept) -> Tensor:
    """Norms of the scores of `width` columns at a time; -1 where they are pruned."""
    scores = criterion.score(weight).square().sum(0).view(-1, width).sum(1).sqrt()
    if weight.name in kept:
        scores[~kept[weight.name].view(-1, width)[:, 0].to(scores.device)] = -1
    return scores


def _without_lowest(scores: Tensor, count: int) -> Tensor:
    kept = torch.ones_like(scores, dtype=torch.bool)
    kept[scores.argsort(stable=True)[:count]] = False
    return kept


def _keep(masks: dict[str, Tensor], block: Block, parts: Any, units: Tensor) -> None:
    """The masks of a block's parts: rows of those that make units, columns of those that read them."""
    for part in parts:
        weight = block.weights[part]
        reads = part.endswith(("down_proj", "o_proj"))
        if units.ndim == 0:
            units_here = units.expand(weight.shape[1] if reads else weight.shape[0]).clone().to(weight.local.device)
        else:
            units_here = units
        masks[weight.name] = units_here[None] if reads else units_here[:, None]
        if block.linear(part).bias is not None:
            if not reads:
                masks[_bias_name(weight)] = units_here
            elif units.ndim == 0:
                masks[_bias_name(weight)] = torch.zeros(weight.shape[0], dtype=torch.bool, device=units_here.device)


def _bias_name(weight: Weight) -> str:
    return f"{weight.name.removesuffix('weight')}bias"
