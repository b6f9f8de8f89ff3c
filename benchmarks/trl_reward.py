"""TRL's RewardTrainer on the same pairs; run in its environment as `python -m benchmarks.trl_reward JOB.json`."""

import json
import sys
from pathlib import Path
from typing import Any

from torch import Tensor
from trl import RewardConfig, RewardTrainer

from benchmarks.reward_workload import RewardJob
from benchmarks.step_clock import StepClock
from benchmarks.tally import PairTally
from benchmarks.trl_settings import shared, train

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
    return RewardConfig(**settings | SETTINGS[job.setting])


def main(job: RewardJob) -> None:
    """Train one pass and report."""
    train(CountingTrainer, job, arguments(job), PairTally())


if __name__ == "__main__":
    main(RewardJob(**json.loads(Path(sys.argv[1]).read_text())))
