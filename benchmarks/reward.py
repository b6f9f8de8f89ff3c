"""Speed and memory of reward modelling, llm-lightning against TRL's RewardTrainer.

    python benchmarks/peers.py trl      # once: TRL in an environment of its own
    python benchmarks/reward.py --model 9m 135m --data hh_rlhf.jsonl.gz --json results.jsonl

What is compared is one pass over the same pairs from the same weights, head included, by the same AdamW, gradient
clipping and threads. How many pairs fit a step differs: ours takes full rows, TRL as many pairs as these rows hold on
average, so that all make about as many steps. So that no lucky batch counts, all steps of the pass are timed but the
first few; reading the data and loading the model are not. The column of pairs is of the whole pass, and shows that all
trained the same; the loss is the mean over the timed pairs. Each measurement is a fresh process; contenders run in
turns, and medians are reported. The data are transcripts as in Anthropic's hh-rlhf.

- `llm-lightning`, `llm-lightning-compile`: the real command line, callbacks included.
- `llm-lightning-unshared`: the prompt computed for each response, data.share_prompts=false.
- `trl`: its defaults, which are bf16 and gradient checkpointing, whatever --precision says.
- `trl-tuned`: without checkpointing, in the precision of the table. It has no padding-free batches for pairs.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.pair_benchmark import PairBenchmark
from benchmarks.reward_workload import RewardJob
from benchmarks.runner import OURS, ROOT, Contender, fit, script


def our_command(job: RewardJob, path: Path) -> list[str]:
    """Only data and stopwatch are the benchmark's."""
    settings: dict[str, Any] = {
        "config": ROOT / "benchmarks" / "reward.yaml",
        "model.backbone.path": job.folder,
        "model.backbone.compile": str(job.compile).lower(),
        "data.path": job.records,
        "data.seq_len": job.seq_len,
        "data.batch_size": job.rows,
        "data.share_prompts": str(job.share_prompts).lower(),
        "data.cache_dir": f"{job.scratch}/cache",
        "trainer.precision": job.precision,
        "trainer.accelerator": job.device,
        "trainer.devices": 1,
        "trainer.default_root_dir": job.scratch,
        "trainer.callbacks+": "benchmarks.step_timer.PairTimer",
        "trainer.callbacks.result": job.result,
        "trainer.callbacks.warmup": job.warmup,
    }
    return fit(settings)


CONTENDERS = [
    Contender(OURS, our_command, quick=True),
    Contender(f"{OURS}-compile", our_command, changes={"compile": True}),
    Contender(f"{OURS}-unshared", our_command, changes={"share_prompts": False}),
    Contender("trl", script("trl_reward", "trl"), quick=True, changes={"setting": "default"}),
    Contender("trl-tuned", script("trl_reward", "trl"), changes={"setting": "tuned"}),
]


BENCHMARK = PairBenchmark(
    "reward",
    __doc__,
    quick="about a minute: 9m, 32-true, ours and trl only",
    contenders=CONTENDERS,
    job=RewardJob,
    head="SequenceClassification",
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
