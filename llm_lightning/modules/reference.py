"""The policy as it was before training."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig

from llm_lightning.errors import UserError
from llm_lightning.models.adapters import residual
from llm_lightning.models.adapters.adapter import fingerprint
from llm_lightning.models.adapters.bottleneck import BottleneckConfig
from llm_lightning.models.adapters.virtual_tokens import prompt_config
from llm_lightning.models.heads import base_model


class Reference:
    """A frozen copy of a network, or of an adapted one the network without its adapter.

    It is in no checkpoint: a resumed run builds it again, and `fingerprint` tells whether it is the same.

    Args:
        model: the policy before its first update.
        frozen: a copy of the network made before the adapter was put on; None: take the adapter off instead.
    """

    def __init__(self, model: Any, frozen: Any = None) -> None:
        self.frozen = frozen
        self.fingerprint = fingerprint(model.get_base_model() if frozen is None else frozen)
        self.model = model

    @contextmanager
    def policy(self) -> Iterator[Any]:
        """The reference, for forward passes inside of this context."""
        if self.frozen is not None:
            yield self.frozen.to(self.model.device)
            return
        if prompt_config(self.model) is not None:  # its tokens are put in by us, not by peft's forward
            yield base_model(self.model)
            return
        with self.model.disable_adapter():
            yield self.model

    def check(self, saved: str | None) -> None:
        """Raise `UserError` where a checkpoint was made with another reference."""
        if saved is not None and saved != self.fingerprint:
            raise UserError(
                "The checkpoint's run had another reference policy: give the model.backbone that it began from (see "
                "its config.yaml), or start over by --resume false."
            )


def can_take_adapter_off(peft: PeftConfig | None) -> bool:
    """Whether the network without its adapter is the one that training began from."""
    if peft is None or isinstance(peft, BottleneckConfig):
        return False
    return not str(getattr(peft, "init_lora_weights", "")).startswith(residual.FROM_WEIGHTS)


def frozen_copy(network: Any) -> Any:
    """A copy that never trains."""
    return copy.deepcopy(network).requires_grad_(False).eval()


def switch_off_dropout(model: torch.nn.Module) -> None:
    """For good: a ratio of probabilities under two different masks means nothing. Training mode stays, because
    activation checkpointing asks for it.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "dropout_p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
