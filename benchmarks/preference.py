"""Speed and memory of DPO, llm-lightning against TRL's DPOTrainer.

    python benchmarks/peers.py trl      # once: TRL in an environment of its own
    python benchmarks/preference.py --model 9m 135m --data hh_rlhf.jsonl.gz --json results.jsonl

What is compared is one pass over the same pairs from the same weights, as in `benchmarks/reward.py`, whose workload it
is: beta 0.1, the same AdamW, gradient clipping and threads. Log-probabilities that are computed before training are not
in the time.

- `llm-lightning`: the real command line, with a frozen copy for reference; `-cached`: the copy's log-probabilities from
  the disk; `-lora`: LoRA of rank 16 on all projections, with the adapter off for reference.
- `trl`: its defaults, which are bf16 and gradient checkpointing, whatever --precision says.
- `trl-tuned`: without checkpointing, in the precision of the table; `trl-padding-free`, `trl-cached` (its
  `precompute_ref_log_probs`) and `trl-lora`: the same so.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.preference_workload import PreferenceJob
from benchmarks.reward import METRICS, differences, of_data
from benchmarks.reward_workload import REWARD_QUICK, REWARD_SHAPES, prepare
from benchmarks.runner import OURS, ROOT, Contender, add_arguments, chosen, chosen_device, compare, fit, script
from benchmarks.sft_workload import enough, write_pairs
from benchmarks.workload import Shape

LORA = '{"class_path": "peft.LoraConfig", "init_args": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}}'


def our_command(job: PreferenceJob, path: Path) -> list[str]:
    """Only data and stopwatch are the benchmark's."""
    settings: dict[str, Any] = {
        "config": ROOT / "benchmarks" / "preference.yaml",
        "model.backbone.path": job.folder,
        "model.reference": "cached" if job.cached else "live",
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
    Contender("trl", TRL, changes={"setting": "default"}),
    Contender("trl-tuned", TRL, quick=True, changes={"setting": "tuned"}),
    Contender("trl-padding-free", TRL, changes={"setting": "padding-free"}),
    Contender("trl-cached", TRL, quick=True, changes={"setting": "tuned", "cached": True}),
    Contender("trl-lora", TRL, changes={"setting": "tuned", "lora": True}),
]


def benchmark(model: str, shape: Shape, args: argparse.Namespace) -> int:
    """A table for each precision; returns the number of contenders that failed."""
    failures = 0
    with tempfile.TemporaryDirectory(prefix="preference-") as folder:
        prepared = prepare(Path(folder), args.data, shape, head="CausalLM")
        records = Path(folder) / "records.jsonl"
        indices = list(enough(prepared.lengths, shape.rows * shape.seq_len * (shape.warmup + shape.steps)))
        write_pairs(records, [prepared.pairs[index] for index in indices])
        properties = of_data(args.data, prepared, indices)
        batch_size = max(1, round(shape.rows * shape.seq_len / properties["mean_pair_tokens"]))
        for precision in args.precision:
            job = PreferenceJob(
                folder=str(prepared.folder), records=str(records), scratch="", result="", rows=shape.rows,
                seq_len=shape.seq_len, batch_size=batch_size, warmup=shape.warmup, precision=precision,
                device=args.device,
            )  # fmt: skip
            settings = {"precision": precision, "rows": shape.rows, "seq_len": shape.seq_len, "batch_size": batch_size}
            title = f"{model}, {precision}, {len(indices)} pairs of {args.data.name}, "
            title += f"{shape.rows} x {shape.seq_len} tokens or {batch_size} pairs a step"
            figures, failed = compare(
                "preference", model, chosen(CONTENDERS, args), job, METRICS, settings | properties, title, args
            )
            failures += failed
            print(*differences(figures), sep="\n", end="")
    return failures


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=sorted({name for name, _ in REWARD_SHAPES}), default=["9m"])
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="hh-rlhf's .jsonl or .jsonl.gz")
    parser.add_argument("--quick", action="store_true", help="some minutes: 9m, 32-true, full training only")
    add_arguments(parser, CONTENDERS)
    args = parser.parse_args(argv)
    if args.quick:
        args.model, args.precision, args.repeats = ["9m"], ["32-true"], 1
    args.device = chosen_device(args.device)
    if not args.data.is_file():
        parser.error(f"--data {args.data}: there is no such file.")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; exit code 1 if a contender failed."""
    args = parse(argv)
    failures = 0
    for model in args.model:
        shape = REWARD_QUICK if args.quick else REWARD_SHAPES[model, args.device]
        failures += benchmark(model, shape, args)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
