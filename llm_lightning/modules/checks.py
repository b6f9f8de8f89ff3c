"""What is found wrong with a network, its adapter and what it is to learn from before any weight is read."""

from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from transformers import PreTrainedConfig

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.adapter import check_targets
from llm_lightning.models.adapters.merging import is_adapter
from llm_lightning.models.loading import new_tokens

DATA = {
    "texts": "TextDataModule",
    "conversations": "InstructionDataModule",
    "pairs of answers": "PreferenceDataModule",
    "prompts": "PromptDataModule",
}
"""By what is learned from: the DataModule that gives it."""
PACKED = ("texts", "conversations")  # the same batches


def check_batches(module: Any, datamodule: Any, predicts: bool) -> None:
    """Compare what a module learns from with what a DataModule gives, where both say it.

    Args:
        module: with its `batch_kind`.
        datamodule: with its own.
        predicts: whether nothing is learned: a language model goes on from prompts of any kind.

    Raises:
        UserError: the module would not find in a batch what it looks for.
    """
    wanted, given = module.batch_kind, getattr(datamodule, "batch_kind", None)
    fitting = {wanted, *(PACKED if wanted in PACKED else ()), *(["prompts"] if predicts and wanted in PACKED else ())}
    if wanted is None or given is None or given in fitting:
        return
    raise UserError(
        f"{type(module).__name__} learns from {wanted}, and {type(datamodule).__name__} gives {given}: "
        f"--data {DATA[wanted]}."
    )


def check_adapter(module: Any) -> None:
    """Raise `UserError` where a `LanguageModule`'s adapter does not go with its backbone."""
    backbone, peft = module.backbone, module.peft
    if peft is None:
        if backbone.quantization is not None:
            raise UserError(
                "model.backbone.quantization: quantized weights cannot train. Add an adapter by model.peft, for "
                "example --config configs/peft/qlora.yaml, or leave the quantization out."
            )
        return
    if backbone.new_tokens:
        new_tokens.check_adapter(peft)
    path = backbone.path
    if path is None:
        raise UserError(
            "model.peft needs a network that is already trained: give model.backbone.path. An adapter on random "
            "weights could never be loaded again."
        )
    if is_adapter(path):
        raise UserError(
            f"model.backbone.path={path!r} is an adapter itself. Merge it first, by `llm-lightning merge {path} "
            "MERGED`, and give model.backbone.path=MERGED."
        )
    with torch.device("meta"):
        network = module.task.from_config(backbone.read_config(), trust_remote_code=backbone.trust_remote_code)
    check_targets(network, peft)


def check_generation(module: Any) -> None:
    """Say which generation settings of the base are left out; raise `UserError` where they cannot be used at all."""
    left_out = {} if module.task.head else module.backbone.generation_config()[1]
    if left_out:
        settings = ", ".join(f"{name}={value}" for name, value in left_out.items())
        rank_zero_info(
            f"{module.backbone.path}: of its generation settings {settings} have no effect or no meaning; they are "
            "left out, here and in the model folders that are saved."
        )


def check_behaviour(module: Any, config: PreTrainedConfig) -> None:
    """Say where the network cannot be run the fast way; raise `UserError` where it cannot be right in any, or has an
    adapter with virtual tokens, which stand before packed documents.
    """
    behaviour, kind = module.backbone.behaviour(module.task, config), config.model_type
    if getattr(module.peft, "is_prompt_learning", False) and not (behaviour.packs and not behaviour.own_logits):
        raise UserError(
            f"model.peft={type(module.peft).__name__} puts virtual tokens before packed documents, and {kind} networks "
            "cannot be packed: take LoRA, --config configs/peft/lora.yaml."
        )
    if line := behaviour.in_words(kind):
        rank_zero_info(line)
