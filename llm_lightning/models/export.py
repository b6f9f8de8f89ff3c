"""The model folder: what a stage leaves behind for transformers, peft, vLLM and the next stage."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_lightning.models.attention import ATTENTION
from llm_lightning.models.heads import base_model
from llm_lightning.models.merging import merged_copy


def save_model_folder(
    model: Any, tokenizer: Any, folder: Path, *, is_global_zero: bool = True, adapter: Any = None
) -> None:
    """Write config, safetensors, generation config and tokenizer to `folder`; of an adapted network the adapter alone.

    Where the base under the adapter is not what it was (a callback pruned it, or merged the adapter), an adapter folder
    would name a network that it does not fit: the merged network is written instead.

    Args:
        model: a transformers network, or a `PeftModel` around one, whole on this rank.
        tokenizer: saved beside it, with its chat template; None for none.
        folder: made where it is missing.
        is_global_zero: only this rank writes.
        adapter: the `Adapter` on the network, None for none.
    """
    if not is_global_zero:
        return
    from transformers.utils import logging

    logging.disable_progress_bar()
    with _config_for_others(base_model(model).config):
        if adapter is None:
            model.save_pretrained(folder)
        elif adapter.is_on_its_base(model):
            adapter.save(folder)
        else:
            merged_copy(model).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


@contextmanager
def _config_for_others(config: Any) -> Iterator[None]:
    """In training there is no cache, and our attention is a name that nobody else knows."""
    use_cache, attention = config.use_cache, config._attn_implementation
    config.use_cache = True
    if attention == ATTENTION:
        config._attn_implementation_internal = None
    try:
        yield
    finally:
        config.use_cache, config._attn_implementation_internal = use_cache, attention
