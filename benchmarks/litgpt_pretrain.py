"""litgpt's own `pretrain.setup` on the fixed rows; run in its environment as `python -m benchmarks.litgpt_pretrain`.

Nothing of its loop is changed: it always compiles, and fuses AdamW on GPUs only. It is told of the network by a config
of its own, gets its weights by its own conversion, and its steps are timed where it fetches batches.
"""

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from litgpt import Config
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import name_to_config
from litgpt.data import DataModule
from litgpt.pretrain import setup
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.step_clock import StepClock
from benchmarks.workload import Job

NAME = "benchmark"


class TimedRows(IterableDataset):
    """Rows (T + 1,) in order, the last label left out as in all contenders; fetching batch n ends step n - 1.

    Args:
        job: the measurement.
        clock: what to tell of each step.
    """

    def __init__(self, job: Job, clock: StepClock) -> None:
        self.rows = torch.from_numpy(np.load(job.rows)).long()
        self.job, self.clock = job, clock

    def __iter__(self) -> Iterator[Tensor]:
        for index, row in enumerate(self.rows):
            if index and index % self.job.batch_size == 0:
                self.clock.tick()
            yield torch.cat([row, torch.tensor([-100])])


class FixedData(DataModule):
    """litgpt's DataModule around `TimedRows`."""

    def __init__(self, job: Job, clock: StepClock) -> None:
        super().__init__()
        self.job, self.clock = job, clock

    def connect(self, *args: object, **kwargs: object) -> None:
        """The rows have their length already."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TimedRows(self.job, self.clock), batch_size=self.job.batch_size)

    def val_dataloader(self) -> DataLoader:
        # Its check before training; these batches end no step.
        return DataLoader(TimedRows(self.job, StepClock("", 0, 0)), batch_size=self.job.batch_size)


def litgpt_config(folder: Path, seq_len: int) -> dict[str, object]:
    """The Llama of a transformers folder in litgpt's words."""
    llama = json.loads((folder / "config.json").read_text())
    rope = llama.get("rope_parameters") or {}
    return {
        "name": NAME,
        "hf_config": {},
        "block_size": seq_len,
        "vocab_size": llama["vocab_size"],
        "padded_vocab_size": llama["vocab_size"],
        "n_layer": llama["num_hidden_layers"],
        "n_head": llama["num_attention_heads"],
        "n_embd": llama["hidden_size"],
        "n_query_groups": llama["num_key_value_heads"],
        "rotary_percentage": 1.0,
        "parallel_residual": False,
        "bias": False,
        "norm_class_name": "RMSNorm",
        "norm_eps": llama["rms_norm_eps"],
        "mlp_class_name": "LLaMAMLP",
        "intermediate_size": llama["intermediate_size"],
        "rope_base": int(rope.get("rope_theta", 10000)),
    }


def main(job: Job) -> None:
    """Train `job.num_steps` steps and report."""
    config = litgpt_config(Path(job.folder), job.seq_len)
    name_to_config[NAME] = config
    initial = Path(job.scratch) / "initial"
    shutil.copytree(job.folder, initial)
    convert_hf_checkpoint(initial, model_name=NAME)
    clock = StepClock(job.result, job.warmup, job.steps, job.device)
    rate = job.optimizer["lr"]
    setup(
        NAME,
        model_config=Config(**config),
        out_dir=Path(job.scratch) / "out",
        precision=job.precision,
        initial_checkpoint_dir=initial,
        data=FixedData(job, clock),
        train=TrainArgs(
            save_interval=None,
            log_interval=1,
            global_batch_size=job.batch_size,
            micro_batch_size=job.batch_size,
            max_tokens=job.num_steps * job.batch_size * job.seq_len,
            max_norm=job.max_norm,
            min_lr=rate,  # with no warm-up this makes its cosine constant
            lr_warmup_steps=0,
            tie_embeddings=True,
        ),
        eval=EvalArgs(interval=10**9, max_iters=1, final_validation=False),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": dict(job.optimizer)},
        devices=1,
        logger_name="csv",
    )
    clock.report(_last_loss(Path(job.scratch) / "out"))


def _last_loss(out: Path) -> float:
    """Of the last step in its own log."""
    log = next(out.rglob("metrics.csv"))
    with log.open() as file:
        return float(list(csv.DictReader(file))[-1]["loss"])


if __name__ == "__main__":
    main(Job(**json.loads(Path(sys.argv[1]).read_text())))
