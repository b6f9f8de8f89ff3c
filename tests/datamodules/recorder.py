"""A small real training run that notes what it was shown; also a script, as DDP starts its ranks by one.

python recorder.py OUT JSON: `fit(**JSON)`, what each rank saw written to OUT.RANK.
"""

import json
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import torch

import datamodules


class Recorder(pl.LightningModule):
    """The smallest model that trains."""

    def __init__(self, save_at: int | None, checkpoint: str | None, log: str | None = None) -> None:
        super().__init__()
        self.log_file = log
        self.embedding = torch.nn.Embedding(300, 4)
        self.save_at, self.checkpoint = save_at, checkpoint
        self.seen: list[list[list[int]]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["input_ids"].tolist())
        if self.log_file is not None:
            with Path(f"{self.log_file}.{self.global_rank}").open("a") as file:
                file.write(json.dumps([self.global_step, self.seen[-1]]) + "\n")
        return self.embedding(batch["input_ids"]).mean()

    def on_train_batch_end(self, *_):
        if self.trainer.fit_loop._should_accumulate():
            return
        rests = getattr(self.trainer.datamodule, "rests", bool)()
        if self.log_file is not None and (self.global_step % 3 == 0 or rests):
            self.save_for_a_kill()
        if self.global_step == self.save_at:
            self.trainer.save_checkpoint(self.checkpoint)

    def save_for_a_kill(self):
        """Whole or not at all."""
        self.trainer.save_checkpoint(f"{self.checkpoint}.new")
        if self.global_rank == 0:
            Path(f"{self.checkpoint}.new").replace(self.checkpoint)
        time.sleep(0.05)

    def on_train_epoch_end(self):
        if self.save_at == -1:
            self.trainer.save_checkpoint(self.checkpoint)

    def validation_step(self, batch, batch_idx):
        assert batch["input_ids"].shape[1] == 64
        self.validated += batch["input_ids"][(batch["labels"] != -100).any(1)].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(
    path: str | list[dict],
    cache: str,
    checkpoint: str | None = None,
    resume: bool = False,
    save_at: int | None = None,
    data: dict | None = None,
    kind: str = "TextDataModule",
    log: str | None = None,
    **trainer_settings,
) -> tuple[Recorder, pl.Trainer, datamodules.TextDataModule]:
    """Trains with rows of 64 and batches of 4; saves at a step, or at -1 at the epoch's end."""
    defaults = {"max_epochs": -1, "check_val_every_n_epoch": None, "val_check_interval": 20, "num_sanity_val_steps": 0}
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", **{**defaults, **quiet, **trainer_settings})
    options = {"seq_len": 64, "batch_size": 4, "cache_dir": cache, "val_share": 0.1, **(data or {})}
    options = {name: value for name, value in options.items() if value is not None}
    if "tokenizer" not in options:
        options["vocab_size"] = 300
    read = path if isinstance(path, str) else [datamodules.TextSource(**source) for source in path]
    module, data_module = Recorder(save_at, checkpoint, log), getattr(datamodules, kind)(read, **options)
    ckpt_path = checkpoint if resume and checkpoint and Path(checkpoint).exists() else None
    trainer.fit(module, data_module, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return module, trainer, data_module


def main() -> None:
    recorder, trainer, data = fit(**json.loads(sys.argv[2]))
    prompts = sum(len(batch["prompt_ids"]) for batch in data.predict_dataloader())
    outcome = {"seen": recorder.seen, "validated": recorder.validated, "prompts": prompts}
    Path(f"{sys.argv[1]}.{trainer.global_rank}").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
