"""The policy's weights as a folder that a server reads, named by their content."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.merging import merged_copy
from llm_lightning.models.export import save_model_folder
from llm_lightning.models.heads import base_model
from llm_lightning.models.loading.sharding import is_sharded
from llm_lightning_safety.files import atomic_folder, make_folder

CONFIG = "adapter_config.json"


def adapter_name(model: Any) -> str:
    """Of other weights another one, and of the same weights the same, in a resumed run too.

    Raises:
        UserError: the policy is no peft adapter in one piece.
    """
    if not isinstance(model, PeftModel):
        raise UserError(
            "model.engine=ServedEngine hands weights over as an adapter, and the policy has none: give model.peft, "
            "such as --config configs/peft/lora.yaml."
        )
    if is_sharded(base_model(model)):
        raise UserError("model.engine=ServedEngine does not gather sharded weights yet: take trainer.strategy=ddp.")
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(_weights(model).items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return f"policy-{digest.hexdigest()}"


def write_adapter(model: Any, folder: Path) -> None:
    """The adapter alone; its base stays where it is.

    Args:
        model: a `PeftModel`; left as it was found.
        folder: takes its place at once, or not at all.
    """
    make_folder(folder.parent)
    with atomic_folder(folder) as unfinished:
        model.save_pretrained(str(unfinished), save_embedding_layers=False)
        config = json.loads((unfinished / CONFIG).read_text())
        base = Path(config["base_model_name_or_path"] or "")
        if base.is_dir():  # the server may have been started elsewhere
            config["base_model_name_or_path"] = str(base.resolve())
        (unfinished / CONFIG).write_text(json.dumps(config, indent=2))


def write_merged(model: Any, tokenizer: Any, folder: Path) -> None:
    """The whole network with the adapter added to its weights, and its tokenizer; else as `write_adapter`."""
    make_folder(folder.parent)
    with atomic_folder(folder) as unfinished:
        save_model_folder(merged_copy(model), tokenizer, unfinished)


def _weights(model: PeftModel) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(model, save_embedding_layers=False)
