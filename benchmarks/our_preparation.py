"""How long InstructionDataModule prepares its data, with an empty cache; `python -m benchmarks.our_preparation`."""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer  # noqa: F401 (its import takes seconds, and is nobody's preparation)

from benchmarks.sft_workload import PreparationJob
from benchmarks.step_clock import Stopwatch
from datamodules import InstructionDataModule


def main(job: PreparationJob) -> None:
    """Prepare and report."""
    data = InstructionDataModule(
        path=job.records, tokenizer=job.folder, seq_len=job.seq_len, val_share=0.0, cache_dir=f"{job.scratch}/cache"
    )
    stopwatch = Stopwatch()
    with stopwatch:
        data.prepare_data()
    stopwatch.report(job.result)


if __name__ == "__main__":
    main(PreparationJob(**json.loads(Path(sys.argv[1]).read_text())))
