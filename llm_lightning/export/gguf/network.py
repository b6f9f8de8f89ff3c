"""Networks as llama.cpp knows them: names and layout of the weights, and the numbers that stand beside them.

The layouts are those of the .gguf specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md); names come
from the gguf package's own table. Only what transformers can read back is written, since it is what proves the file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from llm_lightning.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """One that can be written.

    Attributes:
        name: llama.cpp's.
        is_interleaved: whether the rotary pairs lie beside each other in the rows of the query and key weights, where
            transformers has them half a head apart.
        same: what the config has to say, since the file cannot say anything else.
        check: of what depends on several settings: the reason not to write it, or None.
    """

    name: str
    is_interleaved: bool
    same: Mapping[str, Any]
    check: Callable[[PreTrainedConfig], str | None]


def _window(config: PreTrainedConfig) -> str | None:
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        return f"sliding_window={window} is shorter than max_position_embeddings={config.max_position_embeddings}"
    return None


def _whole_heads(config: PreTrainedConfig) -> str | None:
    if head_size(config) * config.num_attention_heads != config.hidden_size:
        return f"head_dim={head_size(config)} is not hidden_size / num_attention_heads, which is all that is read back"
    return None


def _heads_of_128(config: PreTrainedConfig) -> str | None:
    return None if head_size(config) == 128 else f"head_dim={head_size(config)}, where only 128 is read back"


LLAMA = Architecture("llama", True, {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}, lambda _: None)
QWEN = {"hidden_act": "silu", "use_sliding_window": False}
ARCHITECTURES = {
    "llama": LLAMA,
    "mistral": Architecture("llama", True, {"hidden_act": "silu"}, _window),
    "qwen2": Architecture("qwen2", False, QWEN, _whole_heads),
    "qwen3": Architecture("qwen3", False, QWEN | {"attention_bias": False}, _heads_of_128),
}


def head_size(config: PreTrainedConfig) -> int:
    """Numbers of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """How a network is written.

    Raises:
        UserError: it is none that is known, or has a setting that the file could not say.
    """
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise UserError(
            f"--to gguf: how a {config.model_type} is written is not known here, only {', '.join(ARCHITECTURES)}. Take "
            "--to merged, and llama.cpp's own convert_hf_to_gguf.py on its folder."
        )
    reasons = [
        f"{name}={getattr(config, name)!r}"
        for name, value in architecture.same.items()
        if getattr(config, name, value) != value
    ]
    if layers := config.to_dict().get("per_layer_config"):
        reasons.append(f"per_layer_config gives {len(layers)} layers sizes of their own")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        reasons.append(f"rope_type={rope['rope_type']!r}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        reasons.append(f"partial_rotary_factor={rope['partial_rotary_factor']}")
    reasons += filter(None, [architecture.check(config)])
    if reasons:
        raise UserError(
            f"--to gguf: a {config.model_type} with {', '.join(reasons)} cannot be written so that it can be read back "
            "and checked. Take --to merged, and llama.cpp's own convert_hf_to_gguf.py on its folder."
        )
    return architecture


def add_settings(writer: Any, config: PreTrainedConfig) -> None:
    """What llama.cpp has to know of a network beside its weights, into a `gguf.GGUFWriter`."""
    rope = getattr(config, "rope_parameters", None) or {}
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_rope_dimension_count(head_size(config))
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def tensor_names(architecture: Architecture, config: PreTrainedConfig, names: list[str]) -> dict[str, str]:
    """For each weight that is written its name in the file.

    Raises:
        UserError: one has no name there, or the head is missing.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture.name)
    table = get_tensor_name_map(number, config.num_hidden_layers)
    tied = bool(config.tie_word_embeddings)
    written = {}
    for name in names:
        if (tied and name == "lm_head.weight") or name.endswith(".rotary_emb.inv_freq"):
            continue
        found = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UserError(f"--to gguf: the file has no name for the weight {name} of a {config.model_type}.")
        written[name] = found
    if not tied and "output.weight" not in written.values():
        raise UserError(
            "--to gguf: the network has no lm_head.weight, and its config does not tie it to the embeddings."
        )
    return written


def laid_out(architecture: Architecture, config: PreTrainedConfig, name: str, weight: Tensor) -> Tensor:
    """A weight, its rows as llama.cpp wants them."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(name.split(".")[-2])
    if not architecture.is_interleaved or heads is None:
        return weight
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return torch.swapaxes(halves, 1, 2).reshape(weight.shape)
