"""A small network, batches that differ in their documents, and a fit over them on the device under test."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from llm_lightning.models.backbone import Backbone
from llm_lightning.modules import CausalPretraining
from llm_lightning.modules.schedule import Schedule
from tests.llm_lightning.conftest import pack, random_documents, stack, tiny_config

SEQ_LEN = 128
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": SEQ_LEN}


def batches(count: int, rows: int = 2) -> list[dict[str, torch.Tensor]]:
    """Packed rows, each batch with other documents, another number of them, and another number of trained tokens."""
    made = []
    for number in range(count):
        g = torch.Generator().manual_seed(number)
        cuts = torch.randint(4, 40, (2 + number % 4,), generator=g).tolist()
        batch = stack(*(pack(random_documents(cuts, seed=rows * number + row), SEQ_LEN) for row in range(rows)))
        batch["labels"][:, : 1 + number % 7] = -100
        made.append(batch)
    return made


class Recorder(CausalPretraining):
    """Keeps the loss of each step."""

    def __init__(self, **backbone: Any) -> None:
        def adamw(params: Any) -> torch.optim.Optimizer:
            return torch.optim.AdamW(params, lr=1e-3, weight_decay=0.1, fused=True)

        super().__init__(Backbone(config=tiny_config(**SHAPE), **backbone), adamw, Schedule("constant", warmup=0))
        self.losses: list[float] = []

    def step_metrics(self, totals: dict[str, float]) -> dict[str, float]:
        metrics = super().step_metrics(totals)
        self.losses.append(metrics["train/loss"])
        return metrics


def fit(
    module: LightningModule, rows: list[Any], device: torch.device, ckpt_path: str | None = None, **settings: Any
) -> Trainer:
    """One pass over the batches, in `bf16-mixed` unless told otherwise."""
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(rows, batch_size=None, pin_memory=device.type == "cuda")
    trainer = Trainer(
        **{"precision": "bf16-mixed", "max_epochs": 1, "enable_checkpointing": False} | settings,
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, logger=False, gradient_clip_val=1.0,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=False if ckpt_path else None)
    return trainer
