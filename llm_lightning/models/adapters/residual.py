"""LoRA that starts from the network's own weights (PiSSA, arXiv:2404.02948; OLoRA) and leaves a residual as the base.

peft subtracts the first B A from the base, so the trained adapter fits no network that anybody else has. It is saved as
the LoRA of twice the rank that does the same on the untouched base: B A - B0 A0.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_lightning.errors import UserError

FROM_WEIGHTS = ("pissa", "olora")
FROM_DATA = ("eva", "corda", "lora_ga", "loftq")
LORA_A, LORA_B = ".lora_A.default.weight", ".lora_B.default.weight"


def check(network: PreTrainedModel, config: Any) -> None:
    """Raise `UserError` for starts of LoRA that we could not save or that need a pass over data first."""
    start = _start(config)
    if start.startswith(FROM_DATA):
        raise UserError(
            f"model.peft.init_lora_weights={start} needs a pass over data or weights before training, which there is "
            f"not: choose true, {', '.join(FROM_WEIGHTS)} or another."
        )
    if not start.startswith(FROM_WEIGHTS):
        return
    if getattr(network, "is_quantized", False):
        raise UserError(
            f"model.peft.init_lora_weights={start} changes the base: leave model.backbone.quantization out."
        )
    if config.use_dora or config.rank_pattern or config.alpha_pattern:
        raise UserError(
            f"model.peft.init_lora_weights={start} cannot be saved with use_dora, rank_pattern or alpha_pattern: leave "
            "them out."
        )


def initial_weights(model: Any) -> dict[str, Tensor]:
    """The first A and B of a `PeftModel` whose base is a residual, by their names; empty for any other network."""
    config = getattr(model, "peft_config", {}).get("default") if hasattr(model, "peft_type") else None
    if config is None or not _start(config).startswith(FROM_WEIGHTS):
        return {}
    return {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith((LORA_A, LORA_B))}


def use_initial_weights(model: Any, current: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Make the base the residual of other first weights, where a decomposition did not come out the same again."""
    for name in (name for name in saved if name.endswith(LORA_A)):
        other = name.removesuffix(LORA_A) + LORA_B
        if torch.equal(current[name].cpu(), saved[name].cpu()) and torch.equal(
            current[other].cpu(), saved[other].cpu()
        ):
            continue
        layer = model.get_submodule(name.removesuffix(LORA_A))
        change = current[other] @ current[name] - (saved[other] @ saved[name]).to(current[name])
        change = layer.scaling["default"] * (change.T if layer.fan_in_fan_out else change)
        weight: nn.Parameter = layer.get_base_layer().weight
        weight.data = (weight.data.float() + change.to(weight.device)).to(weight.dtype)


@contextmanager
def as_lora(model: Any, initial: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
    """Options for `save_pretrained`, and the config as it has to be saved, while the adapter is written."""
    if not initial:
        yield {}
        return
    state_dict = model.state_dict()
    for name, first in initial.items():
        is_a, trained = name.endswith(LORA_A), state_dict[name]
        first = first.to(trained)
        state_dict[name] = torch.cat([trained, first], 0) if is_a else torch.cat([trained, -first], 1)
    config = model.peft_config["default"]
    saved = copy.deepcopy(config)
    saved.init_lora_weights = True
    # Scaling is alpha / r, or alpha / sqrt(r): either way it has to stay.
    saved.r, saved.lora_alpha = 2 * config.r, config.lora_alpha * (2**0.5 if config.use_rslora else 2)
    model.peft_config["default"] = saved
    try:
        yield {"state_dict": state_dict}
    finally:
        model.peft_config["default"] = config


def _start(config: Any) -> str:
    return str(getattr(config, "init_lora_weights", "")).lower()
