"""TRL's distillation on the same records; by its own `python -m benchmarks.trl_distillation JOB.json`."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from torch import Tensor
from transformers import AutoTokenizer
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer

from benchmarks.distillation_workload import DistillationJob
from benchmarks.step_clock import StepClock
from benchmarks.tally import Tally
from benchmarks.trainer_ticker import Ticker
from benchmarks.trl_settings import shared


class ReadingTrainer(GKDTrainer):
    """Counts the records that its steps train on."""

    clock: StepClock
    tally: Tally

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        batch = {name: inputs[name] for name in ("labels", "attention_mask")}
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.tally.add({name: tensor.to(loss.device) for name, tensor in batch.items()}, loss, self.clock.is_timing)
        return loss


class WritingTrainer(DistillationTrainer):
    """Counts what it wrote itself."""

    clock: StepClock
    tally: Tally

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        used = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        trained = torch.cat([torch.zeros_like(inputs["prompt_mask"]), inputs["completion_mask"]], 1)
        batch = {"labels": torch.where(trained == 1, 0, -100), "attention_mask": used}
        self.tally.add(batch, loss, self.clock.is_timing)
        return loss


def arguments(job: DistillationJob) -> GKDConfig | DistillationConfig:
    """What ours does; and the setting."""
    settings = shared(job) | {"per_device_train_batch_size": job.batch_size}
    settings["teacher_model_init_kwargs"] = {"dtype": "float32"}
    if job.setting == "tuned":
        settings["gradient_checkpointing"] = False
    if not job.writes:
        return GKDConfig(**settings, lmbda=0.0, beta=0.0, temperature=1.0)
    del settings["max_length"]
    return DistillationConfig(
        **settings, gradient_accumulation_steps=1, max_completion_length=job.writes, beta=1.0, temperature=1.0
    )


def records_of(job: DistillationJob) -> Dataset:
    """As each trainer reads them."""
    dataset = load_dataset("json", data_files=job.records, split="train")
    if job.writes:
        return dataset.remove_columns("completion")
    return dataset.map(lambda row: {"messages": row["prompt"] + row["completion"]}, remove_columns=dataset.column_names)


def main(job: DistillationJob) -> None:
    """Train one pass and report."""
    torch.manual_seed(0)
    clock, tally = StepClock(job.result, job.warmup, None, job.device), Tally()
    trainer_class: Any = WritingTrainer if job.writes else ReadingTrainer
    side = "left" if job.writes else "right"
    trainer = trainer_class(
        model=job.folder, teacher_model=job.teacher, args=arguments(job), train_dataset=records_of(job),
        processing_class=AutoTokenizer.from_pretrained(job.folder, padding_side=side), callbacks=[Ticker(clock)],
    )  # fmt: skip
    trainer.clock, trainer.tally = clock, tally
    trainer.train()
    clock.report(**tally.as_dict())


if __name__ == "__main__":
    main(DistillationJob(**json.loads(Path(sys.argv[1]).read_text())))
