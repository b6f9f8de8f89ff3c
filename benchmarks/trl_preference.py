"""TRL's DPOTrainer and KTOTrainer on the same pairs; its environment runs `-m benchmarks.trl_preference JOB.json`."""

import json
import sys
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from benchmarks.preference_workload import PreferenceJob
from benchmarks.step_clock import StepClock
from benchmarks.tally import PairTally
from benchmarks.trl_settings import shared, train

SETTINGS: dict[str, dict[str, Any]] = {
    # Its own: bf16 and gradient checkpointing.
    "default": {},
    "tuned": {"gradient_checkpointing": False},
    "padding-free": {"gradient_checkpointing": False, "padding_free": True},
}


class CountingTrainer(DPOTrainer):
    """Counts what its steps train on."""

    clock: StepClock
    tally: PairTally

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One step; a padded batch holds two rows a pair."""
        num_pairs = len(inputs["input_ids"]) // 2
        if num_pairs == 0:  # padding-free: one row, in which a text begins wherever positions do
            num_pairs = int((inputs["position_ids"] == 0).sum()) // 2
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.tally.add(num_pairs, loss, self.clock.is_timing)
        return loss


class CountingKTOTrainer(KTOTrainer):
    """The same; a batch holds single answers."""

    clock: StepClock
    tally: PairTally

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One step."""
        num_pairs = len(inputs["label"]) // 2
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.tally.add(num_pairs, loss, self.clock.is_timing)
        return loss


def arguments(job: PreferenceJob) -> DPOConfig | KTOConfig:
    """Everything that all its settings share, and then the setting."""
    settings = shared(job) | {
        "per_device_train_batch_size": job.batch_size * (2 if job.kto else 1),
        "beta": 0.1,
        "precompute_ref_log_probs": job.cached,
    }
    return (KTOConfig if job.kto else DPOConfig)(**settings | SETTINGS[job.setting])


def main(job: PreferenceJob) -> None:
    """Train one pass and report."""
    peft = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if job.lora else None
    train(CountingKTOTrainer if job.kto else CountingTrainer, job, arguments(job), PairTally(), peft_config=peft)


if __name__ == "__main__":
    main(PreferenceJob(**json.loads(Path(sys.argv[1]).read_text())))
