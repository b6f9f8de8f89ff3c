"""The data that calibrated schemes learn from: the run's own."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from callbacks.errors import CallbackError
from callbacks.trainer_parts import datamodule_of

CHOICE = 4
"""Rows to choose each one from: so many times as many are read."""


@dataclass(frozen=True)
class Calibration:
    """Which of the run's training rows calibrate.

    Args:
        num_rows: How many. 128 are AutoRound's default; fewer are faster, in proportion.
        seed: Of the choice of rows, and of what the method draws.
    """

    num_rows: int = 128
    seed: int = 0

    def check(self) -> None:
        """Raise `CallbackError` for settings that leave nothing to calibrate on."""
        if self.num_rows < 1:
            raise CallbackError(
                f"Quantization.calibration.num_rows={self.num_rows}: calibrating needs rows; give 1 up."
            )

    def rows(self, trainer: Trainer) -> list[Tensor]:
        """Rows of (T,) token ids on the CPU, all of one length; fewer than asked for where the data have fewer.

        Raises:
            CallbackError: The training data hold no rows of text.
        """
        loader: Any = trainer.train_dataloader or []
        pool: list[Tensor] = []
        # A loader that goes on where training left it may be at its end; iterated again, it is at the beginning.
        for batch in chain(loader, loader):
            pool += batch.get("input_ids", [])
            if len(pool) >= CHOICE * self.num_rows:
                break
        if not pool:
            raise CallbackError(
                "Quantization.calibration: the training data have no rows of text (`input_ids`) to calibrate on. Name "
                "schemes that need none (int8, int4-rtn), or other data."
            )
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(self.seed))
        chosen = [pool[i].cpu() for i in order[: self.num_rows].tolist()]
        length = min(map(len, chosen))
        return [row[:length] for row in chosen]

    def record(self, trainer: Trainer, rows: list[Tensor]) -> dict[str, Any]:
        """What to remember of the rows that were used."""
        datamodule = datamodule_of(trainer)
        return {
            "source": f"training data of {type(datamodule).__name__}" if datamodule else "training data",
            "path": str(getattr(datamodule, "path", None)),
            "num_rows": len(rows),
            "tokens_per_row": len(rows[0]),
            "seed": self.seed,
        }
