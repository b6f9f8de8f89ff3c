"""The model folder: what a stage leaves behind for transformers, vLLM and the next stage."""

from pathlib import Path
from typing import Any

from llm_lightning.models.attention import ATTENTION


def save_model_folder(model: Any, tokenizer: Any, folder: Path, *, is_global_zero: bool = True) -> None:
    """Write config, safetensors, generation config and tokenizer to `folder`.

    Args:
        model: a transformers network, whole on this rank.
        tokenizer: saved beside it, with its chat template; None for none.
        folder: made where it is missing.
        is_global_zero: only this rank writes.
    """
    if not is_global_zero:
        return
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = model.config
    use_cache, attention = config.use_cache, config._attn_implementation
    # In training there is no cache, and our attention is a name that nobody else knows.
    config.use_cache = True
    if attention == ATTENTION:
        config._attn_implementation_internal = None
    try:
        model.save_pretrained(folder)
    finally:
        config.use_cache, config._attn_implementation_internal = use_cache, attention
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
