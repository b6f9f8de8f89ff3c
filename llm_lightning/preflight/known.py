"""What a run's parts tell of its size before it starts, without running anything of it."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from peft import LoraConfig

from llm_lightning.modules import Distillation, PreferenceOptimization, RewardModeling
from llm_lightning.modules.base import LanguageModule
from llm_lightning.modules.prediction.tokens import TokenPrediction
from llm_lightning.modules.reference import can_take_adapter_off
from llm_lightning.preflight.bound import most_of
from llm_lightning.preflight.capacity import Capacity, capacity_of
from llm_lightning.preflight.disk import most_disk
from llm_lightning.preflight.ranks import is_known
from llm_lightning.preflight.rows import rows_like

KNOWN = (TokenPrediction, RewardModeling, PreferenceOptimization)
"""Modules whose step needs no more than a batch."""

DEFAULT_VOCABULARY = 8192
"""Tokens of a tokenizer that is trained from the texts."""


def is_far_below(module: LanguageModule, datamodule: LightningDataModule, trainer: Trainer) -> bool:
    """Whether a run takes so little, or so little is known of it, that no closer look is worth its seconds."""
    if unknown_because(module, datamodule, trainer):
        return True
    batch = batch_of(datamodule)
    assert batch is not None
    try:
        most = most_of(simplified(module, datamodule), batch)
        return most.step < room_of(trainer).total / 2 and most_disk(most.weights, trainer).fits
    except Exception:  # it cannot be built without weights, which a fit need not do: no reason to stop one
        return True


def unknown_because(module: LanguageModule, datamodule: LightningDataModule, trainer: Trainer) -> str | None:
    """Why a run's memory cannot be told; None where it can."""
    if module.backbone.quantization is not None:
        return "the weights are quantized as they are read"
    if not is_known(trainer.strategy):
        return f"{type(trainer.strategy).__name__} has memory of its own"
    if not isinstance(module, KNOWN) or isinstance(module, Distillation):
        return f"{type(module).__name__} does more in a step than to learn from a batch"
    if isinstance(module, PreferenceOptimization) and (module.objective.kind == "kto" or module.reference == "cached"):
        return "KTO's estimate of its KL, or the cache of a reference, needs the data"
    if module.peft is not None and not (isinstance(module.peft, LoraConfig) and can_take_adapter_off(module.peft)):
        return "the adapter begins from the weights, or is none of LoRA's kind"
    if batch_of(datamodule) is None:
        return f"batches of {type(datamodule).__name__} are not known before they are read"
    return None


def simplified(module: LanguageModule, datamodule: Any) -> LanguageModule:
    """A copy whose network takes as much memory, without what needs a tokenizer or a compiler."""
    module = copy.deepcopy(module)
    backbone = module.backbone = replace(module.backbone, compile=False, new_tokens=())
    data = getattr(datamodule, "data", datamodule)
    if backbone.config is not None and backbone.config.vocab_size == type(backbone.config)().vocab_size:
        backbone.config = copy.deepcopy(backbone.config)
        backbone.config.vocab_size = _vocabulary(data) or backbone.config.vocab_size
    return module


def _vocabulary(data: Any) -> int | None:
    """Tokens of the data's tokenizer."""
    name = getattr(data, "tokenizer_name", None)
    if name is None:
        return getattr(data, "vocab_size", None) or DEFAULT_VOCABULARY
    from transformers import AutoTokenizer

    try:
        return len(AutoTokenizer.from_pretrained(name))
    except (OSError, ValueError):  # the data will say so, or it is a .gguf
        return None


def batch_of(datamodule: Any) -> Mapping[str, Any] | None:
    """A micro-batch as the data will serve it; None where that is not known."""
    return rows_like(getattr(datamodule, "data", datamodule))


def room_of(trainer: Trainer) -> Capacity:
    """The memory of a rank."""
    return capacity_of(trainer.strategy.root_device, math.ceil(trainer.world_size / trainer.num_nodes))
