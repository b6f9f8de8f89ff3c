"""How long TRL's SFTTrainer prepares its data; run in its environment as `python -m benchmarks.trl_preparation`."""

import json
import sys
from pathlib import Path
from typing import Any

from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

from benchmarks.sft_workload import PreparationJob
from benchmarks.step_clock import Stopwatch

SETTINGS: dict[str, dict[str, Any]] = {"default": {}, "packing": {"packing": True, "packing_strategy": "bfd"}}


class TimedTrainer(SFTTrainer):
    """Times what its constructor does to the data."""

    stopwatch: Stopwatch

    def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
        with self.stopwatch:
            return super()._prepare_dataset(*args, **kwargs)


def main(job: PreparationJob) -> None:
    """Prepare and report."""
    TimedTrainer.stopwatch = stopwatch = Stopwatch()
    config = SFTConfig(
        output_dir=job.scratch,
        max_length=job.seq_len,
        completion_only_loss=True,
        dataset_num_proc=job.num_processes if job.setting == "packing" else None,
        use_cpu=True,
        report_to="none",
        **SETTINGS[job.setting],
    )
    with stopwatch:
        records = load_dataset("json", data_files=job.records, split="train")
    TimedTrainer(model=job.folder, args=config, train_dataset=records)
    stopwatch.report(job.result)


if __name__ == "__main__":
    main(PreparationJob(**json.loads(Path(sys.argv[1]).read_text())))
