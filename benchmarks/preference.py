"""Speed and memory of DPO and KTO, llm-lightning against TRL's DPOTrainer and KTOTrainer.

    python benchmarks/peers.py trl      # once: TRL in an environment of its own
    python benchmarks/preference.py --model 9m 135m --data hh_rlhf.jsonl.gz --json results.jsonl

What is compared is one pass over the same pairs from the same weights, as in `benchmarks/reward.py`, whose workload it
is: beta 0.1, the same AdamW, gradient clipping and threads. Log-probabilities that are computed before training are not
in the time.

- `llm-lightning`: the real command line, with a frozen copy for reference; `-cached`: the copy's log-probabilities from
  the disk; `-lora`: LoRA of rank 16 on all projections, with the adapter off for reference; `-kto`: KTO on both answers
  of each pair.
- `trl`: its defaults, which are bf16 and gradient checkpointing, whatever --precision says.
- `trl-tuned`: without checkpointing, in the precision of the table; `trl-padding-free`, `trl-cached` (its
  `precompute_ref_log_probs`), `trl-lora` and `trl-kto` (on the answers of as many pairs a step): the same so.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.pair_benchmark import PairBenchmark
from benchmarks.preference_workload import PreferenceJob
from benchmarks.runner import OURS, ROOT, Contender, fit, script

LORA = '{"class_path": "peft.LoraConfig", "init_args": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}}'


def our_command(job: PreferenceJob, path: Path) -> list[str]:
    """Only data and stopwatch are the benchmark's."""
    settings: dict[str, Any] = {
        "config": ROOT / "benchmarks" / "preference.yaml",
        "model.backbone.path": job.folder,
        "model.reference": "cached" if job.cached else "live",
        "model.objective.kind": "kto" if job.kto else "dpo",
        **({"model.peft": LORA} if job.lora else {}),
        "data.path": job.records,
        "data.seq_len": job.seq_len,
        "data.batch_size": job.rows,
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


TRL = script("trl_preference", "trl")
CONTENDERS = [
    Contender(OURS, our_command, quick=True),
    Contender(f"{OURS}-cached", our_command, quick=True, changes={"cached": True}),
    Contender(f"{OURS}-lora", our_command, changes={"lora": True}),
    Contender(f"{OURS}-kto", our_command, changes={"kto": True}),
    Contender("trl", TRL, changes={"setting": "default"}),
    Contender("trl-tuned", TRL, quick=True, changes={"setting": "tuned"}),
    Contender("trl-padding-free", TRL, changes={"setting": "padding-free"}),
    Contender("trl-cached", TRL, quick=True, changes={"setting": "tuned", "cached": True}),
    Contender("trl-lora", TRL, changes={"setting": "tuned", "lora": True}),
    Contender("trl-kto", TRL, changes={"setting": "tuned", "kto": True}),
]


BENCHMARK = PairBenchmark(
    "preference",
    __doc__,
    quick="some minutes: 9m, 32-true, full training only",
    contenders=CONTENDERS,
    job=PreferenceJob,
    head="CausalLM",
)

if __name__ == "__main__":
    sys.exit(BENCHMARK.main())
