"""TRL's RewardTrainer on the same pairs; run in its environment as `python -m benchmarks.trl_reward JOB.json`."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from torch import Tensor
from trl import RewardConfig, RewardTrainer

from benchmarks.reward_workload import RewardJob
from benchmarks.step_clock import StepClock
from benchmarks.tally import PairTally
from benchmarks.trainer_ticker import Ticker
from benchmarks.trl_settings import shared

SETTINGS: dict[str, dict[str, Any]] = {
    # Its own: bf16 and gradient checkpointing.
    "default": {},
    "tuned": {"gradient_checkpointing": False},
}


class CountingTrainer(RewardTrainer):
    """Counts what its steps train on."""

    clock: StepClock
    tally: PairTally

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        num_pairs = len(inputs["input_ids"]) // 2
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.tally.add(num_pairs, loss, self.clock.is_timing)
        return loss


def arguments(job: RewardJob) -> RewardConfig:
    """Everything that all its settings share, and then the setting."""
    settings = shared(job) | {"per_device_train_batch_size": job.batch_size}
    if job.setting != "default":
        settings["bf16"] = job.precision == "bf16-mixed"
    return RewardConfig(**settings | SETTINGS[job.setting])


def main(job: RewardJob) -> None:
    """Train one pass and report."""
    torch.manual_seed(0)
    clock = StepClock(job.result, job.warmup, None, job.device)
    trainer = CountingTrainer(
        model=job.folder,
        args=arguments(job),
        train_dataset=load_dataset("json", data_files=job.records, split="train"),
        callbacks=[Ticker(clock)],
    )
    trainer.clock, trainer.tally = clock, PairTally()
    trainer.train()
    clock.report(**trainer.tally.as_dict())


if __name__ == "__main__":
    main(RewardJob(**json.loads(Path(sys.argv[1]).read_text())))
