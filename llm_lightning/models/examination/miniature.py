"""A network of the same kind that runs in milliseconds: the same layers, attention and routing over far fewer numbers.

What decides an architecture's behaviour is kept: one layer of each kind at least, its window (made short enough to be
felt by a text of ten tokens), its routing, caps and scales. Widths are cut in proportion to the number of heads, since
one is a multiple of the other in most architectures.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

VOCABULARY = 96
SPECIAL_FROM = 84
"""Tokens from here on may mean something special, and stand in no text that a miniature is tried on."""

MOST_LAYERS = 12
"""Where it is numbers that differ from layer to layer; a named kind of layer is kept wherever it comes first."""

WINDOW = 4
NARROW = 64

DEPTHS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers", "encoder_layers",
    "num_encoder_layers", "num_blocks", "depth",
)  # fmt: skip
NUMBERS_OF_HEADS = (
    "num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "decoder_attention_heads",
    "num_decoder_attention_heads", "encoder_attention_heads",
)  # fmt: skip
WIDTHS = ("hidden_size", "d_model", "n_embd", "embedding_dim", "emb_dim", "dim", "embed_dim")

CAPS = {
    r".*(lora_rank|lowrank)": 16,
    r"(moe_)?(num_experts|n_routed_experts|num_local_experts|num_routed_experts|zero_expert_num)": 4,
    r".*(experts_per_tok|experts_per_token|moe_topk|moe_k|moe_top_k|top_k_experts)": 2,
    r"n_group|topk_group|num_expert_group|n_groups|mamba_n?_?groups": 1,
    r".*(sliding_window|window_size|attention_chunk_size|local_attention|sliding_window_size|window_len)": WINDOW,
    r"index_topk|indexer_budget": WINDOW,
    r"indexer_compress_ratio": 2,
    r"index_n_heads": 16,  # fewer would score many tokens equally, and which of equal ones is taken is chance
    r"num_kv_shared_layers|first_k_dense_replace|num_dense_layers|moe_layer_start_index": 1,
    r"num_nextn_predict_layers|num_codebooks": 1,
}
VOCABULARIES = r".*vocab_size.*|.*_vocab"
FEW_KINDS = 16
"""So small a vocabulary is one of token types or tasks."""
TOKEN = r".*(token_id|_index|token_index)"
COUNT_OF_HEADS = r"(?!index_)(?!.*(dim|size|d_head|head_d)).*(^|_)(n_|num_|n)?heads?(_.*)?"
AS_WIDE = r"lru_width|attention_hidden_size|.*proj_dim|mamba_d_ssm|.*embedding_size|hidden_size_global|.*hidden_size"
INNER = r".*(intermediate_size|ffn_dim|ffn_hidden_size|feed_forward_size|dim_ff|d_inner|n_inner|ff_dim)|dff"
PERIOD = r".*(period|interval|every_n_layers|window_pattern|layer_group_size|per_attn_res_block|sparse_step)"
LAYER_NUMBERS = r".*(ids|idxs|indices|layers)"


def miniature(config: PreTrainedConfig, num_heads: int = 2, of_each_kind: int = 1) -> PreTrainedConfig:
    """The config of a tiny network of the same class; the one that is given stays as it is.

    Args:
        num_heads: some architectures' code works for certain numbers of heads alone.
        of_each_kind: layers; two where one lends its weights to the others.
    """
    small = copy.deepcopy(config)
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    outer = _Scale.of(vars(small), num_heads)
    for part in parts_of(small):
        _shrink(part, _Scale.of(vars(part), num_heads, outer), of_each_kind)
    return small


def parts_of(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """The config and those inside it."""
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(part for value in inner for part in parts_of(value))]


def _shrink(config: PreTrainedConfig, scale: "_Scale", of_each_kind: int) -> None:
    layers = _layer_overrides(config)
    num_layers = _cut_layers(config, of_each_kind)
    for name, value in list(vars(config).items()):
        if name.startswith("_") or not isinstance(value, int | list | tuple):
            continue
        if (smaller := scale(name, value)) != value:
            setattr(config, name, smaller)
    if layers:
        kept = {i: v for i, v in layers.items() if i < num_layers}
        config.per_layer_config = {i: {n: scale(n, v) for n, v in values.items()} for i, values in kept.items()}


@dataclass(frozen=True)
class _Scale:
    """From the numbers of a config to smaller ones, by their names.

    Args:
        ratio: of the number of heads, and of whatever is as wide as all heads together.
        former, width: the network's width before and after.
    """

    ratio: Fraction
    former: int
    width: int

    @classmethod
    def of(cls, values: dict[str, Any], num_heads: int, outer: "_Scale | None" = None) -> "_Scale":
        """Of a config; a part of one without heads of its own is of the layers of the whole."""
        heads = next((values[name] for name in NUMBERS_OF_HEADS if _is_count(values.get(name)) and values[name]), None)
        former = next((values[name] for name in WIDTHS if _is_count(values.get(name))), 0)
        if outer is not None and not heads and former in (0, outer.former):
            return outer
        if heads:
            ratio = Fraction(min(num_heads, heads), heads)
        else:
            ratio = Fraction(min(NARROW, former), former) if former else Fraction(1)
        return cls(ratio, former, cls._wide(former * ratio))

    @staticmethod
    def _wide(value: Fraction) -> int:
        """Where a width is no multiple of the heads, it need not be; kernels want one of 16, then."""
        return int(value) if value.denominator == 1 and value % 4 == 0 else -(-int(value) // 16) * 16

    def __call__(self, name: str, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self(name, each) for each in value)
        if not _is_count(value):
            return value
        if re.fullmatch(TOKEN, name):
            return value if value < SPECIAL_FROM else SPECIAL_FROM + value % (VOCABULARY - SPECIAL_FROM)
        if re.fullmatch(VOCABULARIES, name):
            return VOCABULARY if value > FEW_KINDS else value
        for pattern, cap in CAPS.items():
            if re.fullmatch(pattern, name):
                return min(value, cap)
        if re.fullmatch(COUNT_OF_HEADS, name):
            return max(1, int(value * self.ratio)) if value else value
        if re.fullmatch(INNER, name):
            multiple = self.former and value % self.former == 0 and value // self.former <= 4
            return value // self.former * self.width if multiple else min(value, NARROW)
        if name in WIDTHS or re.fullmatch(AS_WIDE, name):
            return self._wide(value * self.ratio)
        return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _layer_overrides(config: Any) -> dict[int, dict[str, Any]]:
    """What single layers have otherwise than the rest, in configs that hold it layer by layer."""
    spec = vars(config).get("_heterogeneity_spec")
    return {} if spec is None else copy.deepcopy(dict(spec.per_layer_overrides))


def _cut_layers(config: PreTrainedConfig, of_each_kind: int) -> int:
    """Keep the first layers, as many as hold so many of each kind; returns their number."""
    kept = 0
    for depth in DEPTHS:
        num_layers = vars(config).get(depth)
        if not _is_count(num_layers) or not num_layers:
            continue
        kept = min(num_layers, _needed(config, num_layers, of_each_kind))
        if _layer_overrides(config):
            config.per_layer_config = {}
        for name, value in list(vars(config).items()):
            if name.startswith("_") or not isinstance(value, list | tuple):
                continue
            if len(value) == num_layers:
                setattr(config, name, value[:kept])
            elif _are_layer_numbers(name, value):
                setattr(config, name, type(value)(v for v in value if v < kept))
        setattr(config, depth, kept)
    return kept


def _needed(config: PreTrainedConfig, num_layers: int, of_each_kind: int) -> int:
    """How many layers from the first on hold so many of each kind."""
    values = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    values |= {name: getattr(config, name, None) for name in ("layers_block_type", "layer_types")}
    needed = [2, *(max(numbers, default=0) + 1 for numbers in [_first_overrides(config)])]
    for name, value in values.items():
        if isinstance(value, list | tuple) and len(value) == num_layers:
            places = [[i for i, each in enumerate(value) if each == kind] for kind in value]
            last = max((found[of_each_kind - 1 : of_each_kind] or found[-1:])[0] + 1 for found in places)
            needed.append(last if isinstance(value[0], str) else min(last, MOST_LAYERS))
        elif isinstance(value, list | tuple) and value and _are_layer_numbers(name, value):
            needed.append(min(value) + 1)
        elif _is_count(value) and re.fullmatch(PERIOD, name) and value <= MOST_LAYERS:
            needed.append(value)
    return max(needed)


def _first_overrides(config: PreTrainedConfig) -> Sequence[int]:
    """The first layer of each set of overrides."""
    firsts: dict[str, int] = {}
    for layer, values in sorted(_layer_overrides(config).items()):
        firsts.setdefault(repr(values), layer)
    return list(firsts.values())


def _are_layer_numbers(name: str, value: Sequence[Any]) -> bool:
    return bool(re.fullmatch(LAYER_NUMBERS, name)) and all(map(_is_count, value))


@torch.no_grad()
def randomize(network: nn.Module) -> None:
    """Weights so large that whatever a token sees shows in its logits; to be called with a seed."""
    for parameter in network.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(0, parameter.shape[-1] ** -0.5)
        elif not parameter.any():
            parameter.normal_(0, 0.1)
