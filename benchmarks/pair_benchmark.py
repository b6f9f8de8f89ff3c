"""What the benchmarks of preference pairs share: a pass over the same pairs by each contender, and a command line."""

import argparse
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import PEERS
from benchmarks.reward_workload import REWARD_QUICK, REWARD_SHAPES, PreparedPairs, RewardJob, prepare
from benchmarks.runner import OURS, Contender, Figures, Metric, add_arguments, chosen, chosen_device, compare, medians
from benchmarks.sft_workload import enough, write_pairs
from benchmarks.workload import Shape

METRICS = [
    Metric("pairs_per_s", "pairs/s", "pairs/s", 10, ",.2f"),
    Metric("pairs_per_cpu_s", "pairs/s", "per CPU-s", 11, ",.2f"),
    Metric("peak_memory_mb", "MB", "peak MB", 9),
    Metric("loss", "nats", "loss", 9, ".4f"),
    Metric("pairs", "pairs", "pairs", 7),
]


@dataclass(frozen=True)
class PairBenchmark:
    """A benchmark over preference pairs.

    Args:
        name: in the results.
        description: of its command line.
        quick: what `--quick` does.
        contenders: who takes part.
        job: what each is told.
        head: of the network, see `prepare`.
    """

    name: str
    description: str | None
    quick: str
    contenders: Sequence[Contender]
    job: type[RewardJob]
    head: str

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Print the tables; exit code 1 if a contender failed."""
        args = self._parse(argv)
        failures = 0
        for model in args.model:
            shape = REWARD_QUICK if args.quick else REWARD_SHAPES[model, args.device]
            failures += self._run(model, shape, args)
        return 1 if failures else 0

    def _parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(
            description=self.description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--model", nargs="+", choices=sorted({name for name, _ in REWARD_SHAPES}), default=["9m"])
        parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="hh-rlhf's .jsonl or .jsonl.gz")
        parser.add_argument("--quick", action="store_true", help=self.quick)
        add_arguments(parser, self.contenders)
        args = parser.parse_args(argv)
        if args.quick:
            args.model, args.precision, args.repeats = ["9m"], ["32-true"], 1
        args.device = chosen_device(args.device)
        if not args.data.is_file():
            parser.error(f"--data {args.data}: there is no such file.")
        return args

    def _run(self, model: str, shape: Shape, args: argparse.Namespace) -> int:
        """A table for each precision; returns the number of contenders that failed."""
        failures = 0
        with tempfile.TemporaryDirectory(prefix=f"{self.name}-") as folder:
            prepared = prepare(Path(folder), args.data, shape, self.head)
            records = Path(folder) / "records.jsonl"
            indices = list(enough(prepared.lengths, shape.rows * shape.seq_len * (shape.warmup + shape.steps)))
            write_pairs(records, [prepared.pairs[index] for index in indices])
            properties = of_data(args.data, prepared, indices)
            batch_size = max(1, round(shape.rows * shape.seq_len / properties["mean_pair_tokens"]))
            sizes = {"rows": shape.rows, "seq_len": shape.seq_len, "batch_size": batch_size}
            for precision in args.precision:
                job = self.job(
                    folder=str(prepared.folder), records=str(records), scratch="", result="", warmup=shape.warmup,
                    precision=precision, device=args.device, **sizes,
                )  # fmt: skip
                title = f"{model}, {precision}, {len(indices)} pairs of {args.data.name}, "
                title += f"{shape.rows} x {shape.seq_len} tokens or {batch_size} pairs a step"
                figures, failed = compare(
                    self.name, model, chosen(self.contenders, args), job, METRICS,
                    {"precision": precision} | sizes | properties, title, args,
                )  # fmt: skip
                failures += failed
                print(*differences(figures), sep="\n", end="")
        return failures


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
