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

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, only its own folder is on the path

from benchmarks.peers import PEERS
from benchmarks.reward_workload import REWARD_QUICK, REWARD_SHAPES, PreparedPairs, RewardJob, prepare
from benchmarks.runner import (
    OURS,
    ROOT,
    Contender,
    Figures,
    Metric,
    add_arguments,
    chosen,
    chosen_device,
    compare,
    fit,
    medians,
    script,
)
from benchmarks.sft_workload import enough, write_pairs
from benchmarks.workload import Shape

METRICS = [
    Metric("pairs_per_s", "pairs/s", "pairs/s", 10, ",.2f"),
    Metric("pairs_per_cpu_s", "pairs/s", "per CPU-s", 11, ",.2f"),
    Metric("peak_memory_mb", "MB", "peak MB", 9),
    Metric("loss", "nats", "loss", 9, ".4f"),
    Metric("pairs", "pairs", "pairs", 7),
]


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


def differences(figures: Figures) -> list[str]:
    """A line for each contender that trained on other pairs than ours."""
    if OURS not in figures:
        return []
    pairs = {name: medians(runs)["pairs"] for name, runs in figures.items()}
    return [
        f"{name} trained on {count:,.0f} pairs and {OURS} on {pairs[OURS]:,.0f}: they did not do the same work"
        for name, count in pairs.items()
        if not math.isclose(count, pairs[OURS], rel_tol=0.02)  # a last row or batch that is not full is left out
    ]


def benchmark(model: str, shape: Shape, args: argparse.Namespace) -> int:
    """A table for each precision; returns the number of contenders that failed."""
    failures = 0
    with tempfile.TemporaryDirectory(prefix="reward-") as folder:
        prepared = prepare(Path(folder), args.data, shape)
        records = Path(folder) / "records.jsonl"
        indices = list(enough(prepared.lengths, shape.rows * shape.seq_len * (shape.warmup + shape.steps)))
        write_pairs(records, [prepared.pairs[index] for index in indices])
        properties = of_data(args.data, prepared, indices)
        batch_size = max(1, round(shape.rows * shape.seq_len / properties["mean_pair_tokens"]))
        for precision in args.precision:
            job = RewardJob(
                folder=str(prepared.folder), records=str(records), scratch="", result="", rows=shape.rows,
                seq_len=shape.seq_len, batch_size=batch_size, warmup=shape.warmup, precision=precision,
                device=args.device,
            )  # fmt: skip
            settings = {"precision": precision, "rows": shape.rows, "seq_len": shape.seq_len, "batch_size": batch_size}
            title = f"{model}, {precision}, {len(indices)} pairs of {args.data.name}, "
            title += f"{shape.rows} x {shape.seq_len} tokens or {batch_size} pairs a step"
            figures, failed = compare(
                "reward", model, chosen(CONTENDERS, args), job, METRICS, settings | properties, title, args
            )
            failures += failed
            print(*differences(figures), sep="\n", end="")
    return failures


def of_data(data: Path, prepared: PreparedPairs, indices: Sequence[int]) -> dict[str, Any]:
    """What the JSON says of the chosen pairs and of the peer."""
    return {
        "data": data.name,
        "num_pairs": len(indices),
        "mean_pair_tokens": round(sum(prepared.lengths[index] for index in indices) / len(indices), 1),
        "mean_pair_tokens_written_out": round(sum(prepared.written_out[index] for index in indices) / len(indices), 1),
        "pairs_left_out": prepared.num_left_out,
        "trl": next(pin.partition("==")[2] for pin in PEERS["trl"] if pin.startswith("trl==")),
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=sorted({name for name, _ in REWARD_SHAPES}), default=["9m"])
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="hh-rlhf's .jsonl or .jsonl.gz")
    parser.add_argument("--quick", action="store_true", help="about a minute: 9m, 32-true, ours and trl only")
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
