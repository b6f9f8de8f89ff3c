"""TRL's SFTTrainer on the same records; run in its environment as `python -m benchmarks.trl_sft JOB.json`."""

import json
import sys
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from benchmarks.sft_workload import LORA, SFTJob
from benchmarks.step_clock import StepClock
from benchmarks.tally import Tally
from benchmarks.trl_settings import shared, train

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
    return SFTConfig(**settings | SETTINGS[job.setting])


def main(job: SFTJob) -> None:
    """Train one pass and report."""
    peft = LoraConfig(**LORA, task_type="CAUSAL_LM") if job.method == "lora" else None
    train(CountingTrainer, job, arguments(job), Tally(), peft_config=peft)


if __name__ == "__main__":
    main(SFTJob(**json.loads(Path(sys.argv[1]).read_text())))
