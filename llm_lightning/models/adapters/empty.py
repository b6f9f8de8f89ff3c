"""An adapter on a network without weights, which are loaded once it is sharded."""

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftConfig, PeftType
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_lightning.errors import UserError
from llm_lightning.models.adapters import residual

ELSE = "leave it out, or take --config configs/trainer/ddp.yaml."


def make_hollow(network: PreTrainedModel) -> None:
    """Weights on the CPU that take no memory, for those of a network on the meta device.

    peft puts an adapter where the weights are, and its first numbers are to be those that any other network gets.
    """
    _replace(network, lambda p: torch.zeros((), dtype=p.dtype, device="cpu").expand(p.shape))


def make_empty(network: PreTrainedModel) -> None:
    """The meta device again for what `make_hollow` put there."""
    _replace(network, lambda p: torch.empty_like(p, device="meta") if p.ndim and not any(p.stride()) else p.data)


def initialize_copies(model: nn.Module) -> None:
    """Layers that are trained beside an adapter begin as what they are a copy of."""
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for copied in module.modules_to_save.values():
                copied.load_state_dict(module.original_module.state_dict())


def check_sharded(model: Any, network: PreTrainedModel, config: PeftConfig) -> None:
    """Raise `UserError` for adapters that need whole weights, or that are no part of the network."""
    own, name = {id(p) for p in network.parameters()}, type(config).__name__
    if any(id(p) not in own for p in model.parameters()):
        raise UserError(f"model.peft={name} puts weights beside the network, which cannot be sharded with it: {ELSE}")
    if config.peft_type == PeftType.ADALORA:
        raise UserError(f"model.peft={name} compares whole weights, which no rank has where they are sharded: {ELSE}")
    start = str(getattr(config, "init_lora_weights", ""))
    if start.lower().startswith(residual.FROM_WEIGHTS):
        raise UserError(
            f"model.peft.init_lora_weights={start} decomposes whole weights, which no rank has where they are sharded: "
            f"{ELSE}"
        )


def _replace(network: PreTrainedModel, change: Callable[[nn.Parameter], Tensor]) -> None:
    new: dict[int, nn.Parameter] = {}
    old = []  # ids are unique only as long as their objects live
    for module in network.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if id(p) not in new:
                old.append(p)
                new[id(p)] = nn.Parameter(change(p), requires_grad=p.requires_grad)
            setattr(module, name, new[id(p)])
