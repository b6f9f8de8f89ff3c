"""What `predict` makes of each prompt, one JSON object a line."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from typing_extensions import override


class Predictions(BasePredictionWriter):
    """Appends each batch's predictions, a list of dicts, to `predictions.jsonl` in the run folder as they come.

    Each further rank writes a file of its own, `predictions.rank1.jsonl` and so on. The files of an earlier
    `predict` are replaced.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self.path = Path()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        rank = "" if trainer.is_global_zero else f".rank{trainer.global_rank}"
        self.path = Path(trainer.default_root_dir) / f"predictions{rank}.jsonl"
        if stage == "predict":
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("")

    @override
    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: list[dict[str, Any]], *_: Any
    ) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in prediction)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.print(f"Predictions: {self.path}")
