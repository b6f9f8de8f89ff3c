"""What all trainers of TRL are given alike, so that they do what ours does; imported in its environment."""

from typing import Any

import torch
from datasets import load_dataset

from benchmarks.step_clock import StepClock
from benchmarks.tally import PairTally, Tally
from benchmarks.trainer_ticker import Ticker


def shared(job: Any) -> dict[str, Any]:
    """Arguments of `SFTConfig`, `RewardConfig` and `DPOConfig`, from an `SFTJob` or a `RewardJob`."""
    return {
        "output_dir": job.scratch,
        "num_train_epochs": 1,
        "max_length": job.seq_len,
        "model_init_kwargs": {"dtype": "float32"},
        "optim": "adamw_torch_fused",
        "learning_rate": job.optimizer["lr"],
        "adam_beta1": job.optimizer["betas"][0],
        "adam_beta2": job.optimizer["betas"][1],
        "adam_epsilon": job.optimizer["eps"],
        "weight_decay": job.optimizer["weight_decay"],
        "max_grad_norm": job.max_norm,
        "lr_scheduler_type": "constant",
        "use_cpu": job.device == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        **({} if job.setting == "default" else {"bf16": job.precision == "bf16-mixed"}),
    }


def train(trainer_class: Any, job: Any, arguments: Any, tally: Tally | PairTally, **options: Any) -> None:
    """Train one pass and report.

    Args:
        trainer_class: one that adds its steps to `tally` while `clock` runs.
        job: an `SFTJob` or a `RewardJob`.
        arguments: the trainer's config.
        tally: what it counts by.
        options: of the trainer.
    """
    torch.manual_seed(0)
    clock = StepClock(job.result, job.warmup, None, job.device)
    dataset = load_dataset("json", data_files=job.records, split="train")
    trainer = trainer_class(
        model=job.folder, args=arguments, train_dataset=dataset, callbacks=[Ticker(clock)], **options
    )
    trainer.clock, trainer.tally = clock, tally
    trainer.train()
    clock.report(**tally.as_dict())
