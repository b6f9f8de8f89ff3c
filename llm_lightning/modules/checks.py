"""What is found wrong with a network, its adapter, its data and its checkpoint before anything is overwritten."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from peft import PeftConfig
from torch import Tensor
from transformers import PreTrainedConfig

from llm_lightning.errors import UserError
from llm_lightning.models.adapters.adapter import check_targets
from llm_lightning.models.adapters.merging import is_adapter
from llm_lightning.models.attention import ATTENTION
from llm_lightning.models.backbone import Backbone
from llm_lightning.models.loading import new_tokens
from llm_lightning.models.tasks import Task

DATA = {
    "texts": "TextDataModule",
    "masked texts": "TextDataModule --data.masking.probability 0.15",
    "texts with spans taken out": "TextDataModule --data.spans.density 0.15",
    "conversations": "InstructionDataModule",
    "preference pairs": "PreferenceDataModule",
    "prompts": "PromptDataModule",
}
"""For each kind of batch the DataModule that gives it."""
PACKED = ("texts", "conversations")  # the same batches


def check_batches(module: Any, datamodule: Any, predicts: bool) -> None:
    """Compare what a module learns from with what a DataModule gives, where both say it.

    Args:
        module: with its `batch_kind`.
        datamodule: with its own.
        predicts: whether nothing is trained: a language model goes on from prompts of any kind.

    Raises:
        UserError: the module would not find in a batch what it looks for.
    """
    wanted, given = module.batch_kind, getattr(datamodule, "batch_kind", None)
    fitting = {wanted, *(PACKED if wanted in PACKED else ()), *(["prompts"] if predicts and wanted in PACKED else ())}
    if wanted is None or given is None or given in fitting:
        return
    flag = "--data.data" if hasattr(datamodule, "data") else "--data"  # a DataModule around another one
    raise UserError(
        f"{type(module).__name__} learns from {wanted}, and {type(datamodule).__name__} gives {given}: "
        f"{flag} {DATA[wanted]}."
    )


def check_muon(strategy: Strategy) -> None:
    """Raise `UserError` where a strategy gives the optimizer flat vectors, of which no matrix can be made."""
    if isinstance(strategy, DeepSpeedStrategy):
        raise UserError(
            "model.optimizer=Muon: DeepSpeed keeps the weights as flat vectors, and Muon needs matrices. Take --config "
            "configs/trainer/fsdp.yaml, or torch.optim.AdamW."
        )


def check_adapter(backbone: Backbone, peft: PeftConfig | None, task: Task) -> None:
    """Raise `UserError` where an adapter does not go with its backbone."""
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
        network = task.from_config(backbone.read_config(), trust_remote_code=backbone.trust_remote_code)
    check_targets(network, peft)


def check_generation(backbone: Backbone, task: Task) -> None:
    """Say which generation settings of the base are left out; raise `UserError` where they cannot be used at all."""
    left_out = {} if task.head else backbone.generation_config()[1]
    if left_out:
        settings = ", ".join(f"{name}={value}" for name, value in left_out.items())
        rank_zero_info(
            f"{backbone.path}: of its generation settings {settings} have no effect or no meaning; they are "
            "left out, here and in the model folders that are saved."
        )


def check_behaviour(backbone: Backbone, peft: PeftConfig | None, task: Task, config: PreTrainedConfig) -> None:
    """Say where the network cannot be run the fast way; raise `UserError` where it cannot be right in any, or has an
    adapter with virtual tokens, which stand before packed documents.
    """
    behaviour, kind = backbone.behaviour(task, config), config.model_type
    if getattr(peft, "is_prompt_learning", False) and not (behaviour.packs and not behaviour.own_logits):
        raise UserError(
            f"model.peft={type(peft).__name__} puts virtual tokens before packed documents, and {kind} networks "
            "cannot be packed: take LoRA, --config configs/peft/lora.yaml."
        )
    if line := behaviour.in_words(kind):
        rank_zero_info(line)


def check_positions(config: PreTrainedConfig, peft: PeftConfig | None, seq_len: int | None) -> None:
    """Raise `UserError` where a row (None: the data has none) is longer than what the network can tell apart."""
    longest = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    virtual = getattr(peft, "num_virtual_tokens", None) or 0
    if longest and seq_len and seq_len + virtual > longest:
        tokens = f" with {virtual} virtual tokens (model.peft.num_virtual_tokens)" if virtual else ""
        raise UserError(
            f"data.seq_len={seq_len}{tokens} is longer than the network's {longest} positions: lower data.seq_len, "
            "or for a network from scratch raise model.backbone.config.max_position_embeddings."
        )


def check_shared_prompts(backbone: Backbone, peft: PeftConfig | None, datamodule: Any) -> None:
    """Raise `UserError` where two responses cannot begin with one prompt, as the data has them."""
    if not getattr(datamodule, "share_prompts", False):
        return
    if backbone.attention != ATTENTION:
        raise UserError(
            f"data.share_prompts needs model.backbone.attention={ATTENTION}, the default: set "
            "data.share_prompts=false, or leave the attention out."
        )
    if getattr(peft, "is_prompt_learning", False):
        raise UserError(
            f"data.share_prompts does not go with model.peft={type(peft).__name__}, which puts tokens before "
            "every response: set data.share_prompts=false."
        )


def require_pairs(who: str, datamodule: Any) -> None:
    """Let a DataModule refuse answers that have no other one to be compared with, as `who` compares two."""
    if callable(require := getattr(datamodule, "require_pairs", None)):
        require(who)


def check_same_model(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Raise `UserError` where a checkpoint has other weights, by name and shape."""
    for name in sorted(own.keys() | saved.keys()):
        here, there = (tuple(x[name].shape) if name in x else "absent" for x in (own, saved))
        if here != there:
            raise UserError(
                f"The checkpoint is of another model: {name} is {there} there and {here} here. Give the settings "
                "it was made with, another trainer.default_root_dir, or start over with --resume false."
            )
