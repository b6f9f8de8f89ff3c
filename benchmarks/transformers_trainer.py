"""`transformers.Trainer` with its usual settings; run as `python -m benchmarks.transformers_trainer JOB.json`."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from benchmarks.fixed_rows import Rows
from benchmarks.step_clock import StepClock
from benchmarks.trainer_ticker import Ticker
from benchmarks.workload import Job


class LossKeepingTrainer(Trainer):
    """Remembers the last step's loss; the trainer itself reports means over `logging_steps`."""

    last_loss: Tensor

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self.last_loss = super().training_step(*args, **kwargs)
        return self.last_loss


def main(job: Job) -> None:
    """Train `job.num_steps` steps and report."""
    model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32)
    model.config.use_cache = False
    clock = StepClock(job.result, job.warmup, job.steps, job.device)
    arguments = TrainingArguments(
        output_dir=job.scratch,
        max_steps=job.num_steps,
        per_device_train_batch_size=job.batch_size,
        train_sampling_strategy="sequential",
        optim="adamw_torch_fused",
        learning_rate=job.optimizer["lr"],
        adam_beta1=job.optimizer["betas"][0],
        adam_beta2=job.optimizer["betas"][1],
        adam_epsilon=job.optimizer["eps"],
        weight_decay=job.optimizer["weight_decay"],
        max_grad_norm=job.max_norm,
        lr_scheduler_type="constant",
        bf16=job.precision == "bf16-mixed",
        use_cpu=job.device == "cpu",
        torch_compile=job.compile,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
    )
    trainer = LossKeepingTrainer(model, arguments, train_dataset=Rows(job.rows), callbacks=[Ticker(clock)])
    trainer.train()
    clock.report(trainer.last_loss.item())


if __name__ == "__main__":
    main(Job(**json.loads(Path(sys.argv[1]).read_text())))
