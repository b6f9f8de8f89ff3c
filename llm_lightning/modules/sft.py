"""Supervised fine-tuning: the loss is over the replies of conversations, their prompts are only read."""

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable

from llm_lightning.models.backbone import Backbone
from llm_lightning.modules.pretraining import CausalPretraining


class SupervisedFinetuning(CausalPretraining):
    """Next-token prediction over the trained tokens of conversations, in full or by an adapter (`peft`).

    Args:
        backbone: the network.
        optimizer: any torch optimizer by `class_path`. By default AdamW in one kernel a step, without decay, at the
            learning rate that is usual for a whole network; the adapters' overlays in `configs/peft/` raise it.
        kwargs: see `CausalPretraining`; `z_loss` and `generation` are among them.
    """

    batch_kind = "conversations"

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=2e-5, weight_decay=0.0, fused=True),
        **kwargs: Any,
    ) -> None:
        # By name: what stands before `kwargs` by position is taken for the parent's own settings, and could not be set.
        super().__init__(backbone=backbone, optimizer=optimizer, **kwargs)
