"""TRL's SFTTrainer on the same records; run in its environment as `python -m benchmarks.trl_sft JOB.json`."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from benchmarks.sft_workload import LORA, SFTJob
from benchmarks.step_clock import StepClock
from benchmarks.tally import Tally
from benchmarks.trainer_ticker import Ticker
from benchmarks.trl_settings import shared

TUNED = {"gradient_checkpointing": False}
SETTINGS: dict[str, dict[str, Any]] = {
    # Its own: padding, bf16 and gradient checkpointing.
    "default": {},
    "tuned": TUNED,
    # Without packing it has no length to enforce. On CPU its best attention is SDPA with a mask of blocks.
    "padding-free": TUNED | {"padding_free": True, "max_length": None},
    "packing": TUNED | {"packing": True, "packing_strategy": "bfd"},
}


class CountingTrainer(SFTTrainer):
    """Counts what its steps train on."""

    clock: StepClock
    tally: Tally

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        names = ("labels", "attention_mask", "position_ids")
        batch = {name: inputs[name] for name in names if name in inputs}
        loss = super().training_step(model, inputs, *args, **kwargs)
        # The tensors may still lie on the CPU here: it is the trainer that moves them.
        self.tally.add({name: tensor.to(loss.device) for name, tensor in batch.items()}, loss, self.clock.is_timing)
        return loss


def arguments(job: SFTJob) -> SFTConfig:
    """Everything that all its settings share, and then the setting."""
    settings = shared(job) | {
        "per_device_train_batch_size": job.rows if job.setting == "packing" else job.batch_size,
        "completion_only_loss": True,
    }
    if job.setting != "default":
        settings["bf16"] = job.precision == "bf16-mixed"
    return SFTConfig(**settings | SETTINGS[job.setting])


def main(job: SFTJob) -> None:
    """Train one pass and report."""
    torch.manual_seed(0)
    clock = StepClock(job.result, job.warmup, None, job.device)
    trainer = CountingTrainer(
        model=job.folder,
        args=arguments(job),
        train_dataset=load_dataset("json", data_files=job.records, split="train"),
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM") if job.method == "lora" else None,
        callbacks=[Ticker(clock)],
    )
    trainer.clock, trainer.tally = clock, Tally()
    trainer.train()
    clock.report(**trainer.tally.as_dict())


if __name__ == "__main__":
    main(SFTJob(**json.loads(Path(sys.argv[1]).read_text())))
