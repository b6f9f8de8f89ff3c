"""A network with its adapter in it, as a folder that needs no peft."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.merging import base_of, check_mergeable, is_adapter, task_of
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.export import save_model_folder
from llm_lightning_safety.files import atomic_folder


def merge_folder(adapter: Path, output: Path, dtype: str | None = None) -> None:
    """Write the network with the adapter in it to `output`, which must not exist or be empty; all of it or nothing.

    Args:
        adapter: its folder.
        output: the new one.
        dtype: of the weights, once they are merged in float32; by default the network's own.

    Raises:
        UserError: `adapter` is no adapter folder or cannot be merged, or `output` holds something.
    """
    if not is_adapter(adapter):
        raise UserError(f"{adapter} is no adapter folder: it has no adapter_config.json.")
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output} is not empty: name a new folder.")
    check_mergeable(adapter)
    config = AutoConfig.from_pretrained(base_of(adapter), trust_remote_code=False)
    dtype = dtype or str(config.dtype or torch.float32).removeprefix("torch.")
    network = Backbone(path=str(adapter), dtype=dtype).build(task=task_of(adapter))  # type: ignore[arg-type]
    with atomic_folder(output) as folder:
        save_model_folder(network, _tokenizer(adapter), folder)


def _tokenizer(adapter: Path) -> Any:
    """The one that was saved with the adapter, else the network's, else none."""
    for place in (str(adapter), base_of(adapter)):
        try:
            return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        except (OSError, ValueError):
            continue
    return None
