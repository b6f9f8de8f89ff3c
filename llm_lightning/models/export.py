"""The model folder: what a stage leaves behind for transformers, peft, vLLM and the next stage."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.merging import merged_copy
from llm_lightning.models.attention import ATTENTION, attention_of, with_attention
from llm_lightning.models.generation import generation_settings
from llm_lightning.models.heads import base_model
from llm_lightning.models.loading.sharding import gathered, is_sharded, reshard, shape_of
from llm_lightning_safety.files import follow_umask

FILE_SIZE = "5GB"
"""Of a sharded network's files: what the first rank has in memory at a time."""


def save_model_folder(
    model: Any, tokenizer: Any, folder: Path, *, is_global_zero: bool = True, adapter: Any = None
) -> None:
    """Write config, safetensors, generation config and tokenizer to `folder`; of an adapted network the adapter alone.

    However the network came to be, it stops where its tokenizer and its chat template end: see `generation_settings`.
    Where the base under the adapter is not what it was (a callback pruned it, or merged the adapter), an adapter folder
    would name a network that it does not fit: the merged network is written instead.

    Args:
        model: a transformers network, or a `PeftModel` around one.
        tokenizer: saved beside it, with its chat template; None for none.
        folder: made where it is missing.
        is_global_zero: only this rank writes; where the network is sharded, all ranks have to call it.
        adapter: the `Adapter` on the network, None for none.
    """
    network = base_model(model)
    in_parts = is_sharded(network)
    if not (is_global_zero or in_parts):
        return
    from transformers.utils import logging

    logging.disable_progress_bar()
    if network.can_generate():
        network.generation_config = generation_settings(network.generation_config, tokenizer)
    with _config_for_others(network):
        if adapter is None:
            _save_in_parts(model, folder, is_global_zero) if in_parts else model.save_pretrained(folder)
        elif adapter.is_on_its_base(model):
            adapter.save(folder, is_global_zero=is_global_zero)
            if is_global_zero and network.can_generate():
                network.generation_config.save_pretrained(folder)
        elif in_parts:
            raise UserError(
                "The base under model.peft changed, and cannot be merged with it where the network is sharded: take "
                "--config configs/trainer/ddp.yaml."
            )
        else:
            merged_copy(model).save_pretrained(folder)
    if is_global_zero:
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        follow_umask(folder)


def _save_in_parts(network: Any, folder: Path, is_global_zero: bool) -> None:
    """What `save_pretrained` writes, one tensor gathered after the other and one file filled after the other."""
    reshard(network)
    tensors = _untied(network)
    plan = split_torch_state_dict_into_shards(
        {name: torch.empty(shape_of(t), dtype=t.dtype, device="meta") for name, t in tensors.items()},
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=FILE_SIZE,
    )
    failed: Exception | None = None
    for file, names in plan.filename_to_tensors.items():
        content = {}
        for name in names:
            tensor = gathered(tensors[name])
            if is_global_zero and failed is None:
                content[name] = tensor.cpu().contiguous()
            del tensor
        try:
            if content:
                folder.mkdir(parents=True, exist_ok=True)
                save_file(content, folder / file, metadata={"format": "pt"})
        except Exception as error:  # the others wait for this rank in the next gathering
            failed = error
    if failed is not None:
        raise failed
    if is_global_zero:
        _save_configs(network, folder)
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _untied(network: Any) -> dict[str, Tensor]:
    """The state dict, each tensor by its first name alone."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def _save_configs(network: Any, folder: Path) -> None:
    network.config.dtype = str(network.dtype).removeprefix("torch.")
    network.config.architectures = [type(network).__name__.removeprefix("FSDP")]
    network.config.save_pretrained(folder)
    if network.can_generate():
        network.generation_config.save_pretrained(folder)


@contextmanager
def _config_for_others(network: Any) -> Iterator[None]:
    """In training there is no cache, and our attention is a name that nobody else knows."""
    config, attention = network.config, attention_of(network)
    use_cache, config.use_cache = config.use_cache, True
    try:
        with with_attention(config, None if attention == ATTENTION else attention):
            yield
    finally:
        config.use_cache = use_cache
